"""The processes of the bench: nodes' stores, each on its machine, and the object store."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from bench.sharing.network import Machine
from sllm.checkpoint.format.manifest import Manifest
from tests.node.peers.nodes import StoreProcess, store_process
from tests.processes import started

_UNLIMITED: Final = 10_000.0
"""Megabits per second: more than these processes give."""


@dataclass(slots=True)
class ObjectStore:
    """The process that serves the checkpoint."""

    url: str
    process: subprocess.Popen[str]

    @property
    def packed(self) -> str:
        """The source that was packed."""
        return f"{self.url}/packed"

    @property
    def plain(self) -> str:
        """The same as safetensors."""
        return f"{self.url}/plain"

    def asked(self) -> int:
        """Bytes of weights that it was asked for since the last time."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


@contextmanager
def object_store(root: Path, machine: Machine) -> Iterator[ObjectStore]:
    """A process that serves a directory."""
    serve = (sys.executable, "-m", "bench.sharing.object_store", str(root), machine.address)
    with started(machine.command(*serve), stdin=subprocess.PIPE) as process:
        assert process.stdout
        port = int(process.stdout.readline())
        yield ObjectStore(f"http://{machine.address}:{port}", process)


class Fleet:
    """A node on each machine, which stays for all cases; one that was killed is replaced."""

    def __init__(
        self,
        directory: Path,
        machines: Sequence[Machine],
        store: Machine,
        megabits: float,
        manifest: Manifest,
    ) -> None:
        """Of the machines that nodes run on, and that of the object store."""
        self.nodes: list[StoreProcess] = []
        self._directory = directory
        self._machines = machines
        self._store = store
        self._megabits = megabits
        self._manifest = manifest
        self._stack = ExitStack()
        self._started = 0

    def __enter__(self) -> Self:
        with ThreadPoolExecutor() as threads:
            self.nodes = list(threads.map(self._start, self._machines))
        return self

    def _start(self, machine: Machine) -> StoreProcess:
        self._started += 1
        chunks = sum(entry.chunk_count for entry in self._manifest.partitions)
        node = store_process(
            self._directory / f"{machine.name}-{self._started}",
            machine.name,
            f"--host={machine.address}",
            f"--chunk-bytes={self._manifest.partitions[0].chunk_size}",
            f"--pool-chunks={chunks}",
            prefix=machine.command(),
        )
        return self._stack.enter_context(node)

    @contextmanager
    def unlimited(self) -> Iterator[None]:
        """For what is not measured."""
        self._limit(_UNLIMITED)
        yield
        self._limit(self._megabits)

    def _limit(self, megabits: float) -> None:
        for machine in (*self._machines, self._store):
            machine.limit(up=megabits, down=megabits)

    def widen(self, node: StoreProcess, times: int) -> None:
        """Has a node get so many times as much, until the links are bounded anew."""
        machine = self._machines[self.nodes.index(node)]
        machine.limit(up=self._megabits, down=times * self._megabits)

    def mend(self) -> None:
        """Starts those again that were killed."""
        for place, node in enumerate(self.nodes):
            if node.process.poll() is not None:
                self.nodes[place] = self._start(self._machines[place])

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()
