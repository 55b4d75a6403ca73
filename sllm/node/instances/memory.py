"""What instances take of the node's memory for themselves, beside pool and KV caches.

Measured is what a worker has written and shares with nobody: `Private_Dirty` in smaps_rollup, see
proc(5). That leaves out what would be counted twice, the pool's pages, which the agent maps as
well, and what the zygote has imported. A proportional share (`Pss_Anon`) would halve as soon as a
second worker is forked; here the zygote's pages count once, as the node's own. The sum is the same.
"""

import asyncio
import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self

import structlog

from sllm import errors, own_memory
from sllm.clock import Clock
from sllm.config import format_bytes
from sllm.own_memory import Taken

log = structlog.get_logger()

MAX_INSTANCES: Final = 256
"""Of one node, whatever they take: each is a process with threads, sockets and descriptors."""
LOOK_SECONDS: Final = 10.0
"""Between two measurements; the kernel walks all pages of a worker for each."""
_PRIVATE: Final = re.compile(r"^Private_Dirty: +(\d+) kB$", re.MULTILINE)
_UNIT: Final = 1 << 20
"""Sizes are rounded up to it: each that differs is reported to the control plane."""


def private_bytes(pid: int, proc: Path = Path("/proc")) -> int:
    """Bytes that a process has written and shares with nobody.

    Raises:
        OSError: It has gone, or the kernel does not tell.
    """
    found = _PRIVATE.search((proc / str(pid) / "smaps_rollup").read_text())
    return int(found[1]) * 1024 if found else 0


class OwnMemory:
    """What one worker takes for itself, measured again and again. Belongs to the event loop."""

    def __init__(self) -> None:
        self.bytes = 0
        """0: not yet measured."""
        self._ready_bytes = 0

    async def measure(
        self,
        pids: Sequence[int],
        kv_bytes: Callable[[], int],
        clock: Clock,
        later_bytes: int = 0,
    ) -> None:
        """Measures until the worker has gone.

        Args:
            pids: Of its processes, which are ready and have an empty KV cache.
            kv_bytes: Tells what that may have come to take of the same memory.
            clock: Waits between two measurements.
            later_bytes: The same of experts that it reads as they are used, of images and of
                logits: they count whole.
        """
        try:
            while True:
                found = await asyncio.to_thread(lambda: sum(map(private_bytes, pids)))
                self.take(found, kv_bytes(), later_bytes)
                await clock.sleep(LOOK_SECONDS)
        except (FileNotFoundError, ProcessLookupError):
            return  # it has gone
        except OSError as error:
            log.warning("worker.not_measured", pids=pids, problem=str(error))

    def take(self, private: int, kv_bytes: int, later_bytes: int = 0) -> None:
        """Takes a measurement in: of what has come since the first, the KV cache may be a part.

        That is filled as requests come, so that the first tells what is there beside it. So it is
        with experts and images.
        """
        self._ready_bytes = self._ready_bytes or private
        own = max(self._ready_bytes, private - kv_bytes - later_bytes) + later_bytes
        self.bytes = -(-own // _UNIT) * _UNIT


@dataclass(frozen=True, slots=True)
class NodeMemory:
    """The memory of a node at one moment, and what its instances take of it for themselves."""

    total_bytes: int
    """All that the node may take."""
    capacity_bytes: int
    """What instances may take together for themselves."""
    instance_bytes: int
    """What is expected of one beside copies of its own, where none has been measured."""
    taken: tuple[Taken, ...] = ()
    """By those that are there."""

    def with_taken(self, taken: tuple[Taken, ...]) -> Self:
        """The same memory with what these take of it."""
        return replace(self, taken=taken)

    @property
    def used_bytes(self) -> int:
        """What the instances take, as measured or expected."""
        return sum(
            one.own_bytes or self.expected(one.kind, one.private_bytes) for one in self.taken
        )

    @property
    def free_bytes(self) -> int:
        """What the instances leave of it."""
        return self.capacity_bytes - self.used_bytes

    def expected(self, kind: Hashable, private_bytes: int | None) -> int:
        """What one more instance is taken to take; see `own_memory.expected`."""
        return own_memory.expected(kind, private_bytes, self.taken, self.instance_bytes)

    def check_room(self, deployment: str, kind: Hashable, private_bytes: int | None) -> None:
        """Whether one more instance may start.

        Args:
            deployment: What it is of.
            kind: As in `Taken`.
            private_bytes: The same.

        Raises:
            errors.NoCapacity: With the numbers.
        """
        if len(self.taken) >= MAX_INSTANCES:
            raise errors.NoCapacity(
                f"this node runs {len(self.taken)} instances, and {MAX_INSTANCES} at most; add a "
                "node, or lower min_replicas"
            )
        needed = self.expected(kind, private_bytes)
        free = self.free_bytes
        if needed > free:
            raise errors.NoCapacity(
                f"{deployment} takes about {format_bytes(needed)} of memory for an instance, "
                f"beside pool and KV caches; {format_bytes(max(0, free))} of "
                f"{format_bytes(self.capacity_bytes)} are free on this node"
            )
