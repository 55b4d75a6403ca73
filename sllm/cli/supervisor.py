"""Servers as child processes: started, started again when they die, and stopped."""

import asyncio
import os
import sys
import time
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sllm import errors

FIRST_BACKOFF: Final = 0.5
LONGEST_BACKOFF: Final = 15.0
STABLE_SECONDS: Final = 30.0
"""A server that ran this long was well: what ends it is a new trouble."""
START_SECONDS: Final = 120.0
STOP_SECONDS: Final = 30.0
POLL_SECONDS: Final = 0.05
_SAID_BYTES: Final = 4096
LISTENING: Final = "listening on "
"""What a server writes to stdout, before its host:port, once it serves."""
PEERS: Final = "peers on "
"""What it writes before that, if peers have a host:port of their own."""


def next_backoff(last: float | None, uptime: float) -> float:
    """Seconds until a server that ran for `uptime` is started again; `last` time it was that."""
    if last is None or uptime >= STABLE_SECONDS:
        return FIRST_BACKOFF
    return min(2 * last, LONGEST_BACKOFF)


@dataclass(frozen=True, slots=True)
class Command:
    """How a server is started."""

    name: str
    """What it is called in messages."""
    arguments: tuple[str, ...]
    """Of `sllm`, without --listen."""
    listen: str
    """host:port to listen on; port 0 takes any that is free."""
    log: Path
    """File that its log is appended to."""
    keeps_address: bool = False
    """Whether it has to come back on the address that it had, because others know it."""


class Server:
    """One server, whichever process runs it."""

    def __init__(self, command: Command, say: Callable[[str], None]) -> None:
        self.name = command.name
        self.address = command.listen
        """host:port that it listens on, once it has started."""
        self.peers = ""
        """host:port on which it listens for peers alone, if it does."""
        self._command = command
        self._say = say
        self._process: Process | None = None
        self._started_at = 0.0

    async def start(self) -> None:
        """Starts a process and waits until it listens.

        Raises:
            errors.StartFailed: It ended before, took too long, or cannot have its log.
        """
        self._started_at = time.monotonic()
        try:
            with _file_in_memory(self.name) as said:
                self._process = await self._spawn(said)
                async with asyncio.timeout(START_SECONDS):
                    self.address = await _said_address(self._process, said)
                self.peers = _address(PEERS, _said(said))
        except (TimeoutError, EOFError) as error:
            await self.stop()
            raise errors.StartFailed(
                f"{self.name} did not start: {self._last_words()} ({self._command.log})"
            ) from error
        except OSError as error:
            raise errors.StartFailed(
                f"{self.name} cannot be started: {error}; --dir says where its files and log are"
            ) from error

    async def keep(self) -> None:
        """Starts another process whenever one ends, until this is cancelled."""
        backoff: float | None = None
        while True:
            assert self._process is not None
            status = await self._process.wait()
            backoff = next_backoff(backoff, time.monotonic() - self._started_at)
            self._say(
                f"{self.name} ended with status {status} ({self._command.log}); "
                f"starting it again in {backoff:g} s"
            )
            await asyncio.sleep(backoff)
            with suppress(errors.StartFailed):  # then it has ended again
                await self.start()

    async def stop(self) -> None:
        """Asks the process to end, and waits; kills it if it does not."""
        if self._process is None or self._process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            self._process.terminate()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self._process.wait()
        except TimeoutError:
            self._say(f"{self.name} did not stop within {STOP_SECONDS:g} s: killed")
            self._process.kill()
            await self._process.wait()

    async def _spawn(self, said: int) -> Process:
        self._command.log.parent.mkdir(parents=True, exist_ok=True)
        with self._command.log.open("ab") as log:
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "sllm.cli.main", *self._command.arguments),
                *(*self._listen(), "--parent", str(os.getpid())),
                stdin=DEVNULL,
                stdout=said,
                stderr=log,
                process_group=0,  # Ctrl-C is for the supervisor, which ends them in order
            )

    def _listen(self) -> tuple[str, ...]:
        if not self._command.keeps_address:
            return "--listen", self._command.listen
        return "--listen", self.address, *(("--peer-listen", self.peers) if self.peers else ())

    def _last_words(self) -> str:
        try:
            lines = self._command.log.read_text(errors="replace").splitlines()
        except OSError as error:
            return f"its log cannot be read: {error}"
        return lines[-1] if lines else "it wrote no log"


@contextmanager
def _file_in_memory(name: str) -> Iterator[int]:
    """The descriptor of a file that takes no room on a disk.

    Not a pipe: it would stay open, and the end unnoticed, for as long as a grandchild lives.
    """
    descriptor = os.memfd_create(name)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


async def _said_address(process: Process, said: int) -> str:
    """The address that a process says it listens on, in what it has written to stdout.

    Raises:
        EOFError: It ended without a word.
    """
    while process.returncode is None:
        if address := _address(LISTENING, _said(said)):
            return address
        await asyncio.sleep(POLL_SECONDS)
    raise EOFError


def _said(said: int) -> list[str]:
    """The lines that a process has written to its end."""
    lines = os.pread(said, _SAID_BYTES, 0).decode(errors="replace").splitlines(keepends=True)
    return [line for line in lines if line.endswith("\n")]


def _address(word: str, lines: list[str]) -> str:
    """The address that follows a word. Empty: none has."""
    return next((line.removeprefix(word).strip() for line in lines if line.startswith(word)), "")
