"""A real etcd for tests: one member, on a port of its own, whose files are in memory."""

import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from sllm.control.config import EtcdConfig
from tests.processes import started
from tests.support import held_port

NO_ETCD = "etcd is not installed: `apt-get install etcd-server`"
PREFIX = "sllm-etcd-"
"""Of the names of their directories in shared memory."""
_UP_SECONDS = 60.0


def needs_etcd() -> str:
    """The program; the test is skipped where there is none."""
    return shutil.which("etcd") or pytest.skip(NO_ETCD)


class EtcdServer:
    """One member."""

    def __init__(self, directory: Path, *arguments: str, scheme: str = "http") -> None:
        program = needs_etcd()
        self._stack = ExitStack()
        self.port = self._stack.enter_context(held_port())
        peers = self._stack.enter_context(held_port())
        client, peer = f"{scheme}://127.0.0.1:{self.port}", f"http://127.0.0.1:{peers}"
        command = [program, "--data-dir", str(directory / "data")]
        command += ["--listen-client-urls", client, "--advertise-client-urls", client]
        command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
        command += ["--initial-cluster", f"default={peer}", "--log-level", "error", *arguments]
        self._command = command
        self._log = self._stack.enter_context((directory / "etcd.log").open("w"))
        self._start()

    def _start(self) -> None:
        self.process = self._stack.enter_context(
            started(self._command, stdout=self._log, stderr=subprocess.STDOUT)
        )

    @property
    def endpoint(self) -> str:
        """host:port."""
        return f"127.0.0.1:{self.port}"

    def config(self) -> EtcdConfig:
        """A part of it that nobody else uses."""
        return EtcdConfig((self.endpoint,), prefix=f"/{uuid.uuid4().hex}/")

    def wait_until_up(self) -> bool:
        """Returns once it takes connections; whether it does."""
        deadline = time.monotonic() + _UP_SECONDS
        while self.process.poll() is None and time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1.0).close()
            except OSError:
                time.sleep(0.02)
            else:
                return True
        return False

    def pause(self) -> None:
        """Has it answer nobody."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Has it answer again."""
        self.process.send_signal(signal.SIGCONT)

    def restart(self) -> None:
        """Kills it, and starts it again over what it has on its disk."""
        self.process.kill()
        self.process.wait()
        self._start()

    def stop(self) -> None:
        """Kills it."""
        self._stack.close()


@contextmanager
def running_etcd(*arguments: str, scheme: str = "http") -> Iterator[EtcdServer]:
    """A member that runs within the context."""
    memory = Path("/dev/shm")
    where = memory if memory.is_dir() else None
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=where) as directory:
        server = EtcdServer(Path(directory), *arguments, scheme=scheme)
        try:
            if not server.wait_until_up():
                pytest.fail(f"etcd does not start: {Path(directory, 'etcd.log').read_text()}")
            yield server
        finally:
            server.stop()
