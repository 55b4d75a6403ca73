"""Processes that are killed, stopped and started again on the addresses that they had."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

START_SECONDS: Final = 60.0
_FAKETIME: Final = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")
_SHARED: Final = re.compile(r"faketime_(?:sem|shm)_(\d+)$|sem\.faketime_sem_(\d+)$")


class Server:
    """One process."""

    def __init__(
        self, name: str, directory: Path, command: Sequence[str], env: Mapping[str, str] = {}
    ) -> None:
        self.name = name
        self._log = directory / f"{name}.log"
        self._command = command
        self._env = {**os.environ, **env}
        self.start()

    def start(self) -> None:
        """Starts it, at first or again."""
        with self._log.open("a") as log:
            self.process = subprocess.Popen(
                self._command, stdout=log, stderr=subprocess.STDOUT, env=self._env
            )

    def end(self, number: signal.Signals) -> None:
        """Sends a signal that ends it, and waits for that."""
        self.process.send_signal(number)
        try:
            self.process.wait(START_SECONDS)
        finally:
            self.process.kill()  # of no effect once it has ended
            self.process.wait()
            forget_skew(self.process.pid)

    def events(self, name: str) -> list[dict[str, Any]]:
        """What it has logged of this name, in order."""
        lines = (line for line in self._log.read_text().splitlines() if line.startswith("{"))
        return [event for line in lines if (event := json.loads(line))["event"] == name]


def skews() -> bool:
    """Whether clocks can be made wrong here."""
    return _FAKETIME.exists()


def skewed(by: str) -> dict[str, str]:
    """The environment of a process whose clock is wrong by so much, as in "+5s"."""
    if not skews():
        return {}
    return {"LD_PRELOAD": str(_FAKETIME), "FAKETIME": by, "DONT_FAKE_MONOTONIC": "1"}


def forget_skew(pid: int) -> None:
    """Removes what libfaketime leaves in /dev/shm of a process that was killed."""
    for path in Path("/dev/shm").glob("*faketime_*"):
        found = _SHARED.search(path.name)
        if found and pid == int(found[1] or found[2]):
            path.unlink(missing_ok=True)
