"""The processes that a zygote has forked, by what it and they tell of them."""

import asyncio
import os
import signal
from dataclasses import dataclass, field
from typing import TypeVar

from sllm.node.instances.pidfd import ProcessHandle

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Exit:
    """How a worker has ended."""

    status: int
    """As waitpid(2) gives it."""
    orphaned: bool = False
    """Whether it ends because its zygote has; then it may go on for a moment."""

    @property
    def is_fault(self) -> bool:
        """Whether it has touched memory that is not there."""
        signals = (signal.SIGSEGV, signal.SIGBUS)
        return os.WIFSIGNALED(self.status) and os.WTERMSIG(self.status) in signals

    @property
    def in_words(self) -> str:
        """For people: follows the worker's name."""
        if self.orphaned:
            return "has died with the zygote that it was forked from"
        if not os.WIFSIGNALED(self.status):
            return f"ended with exit status {os.waitstatus_to_exitcode(self.status)}"
        name = signal.Signals(os.WTERMSIG(self.status)).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return f"was killed by {name}{hint}"


def future() -> "asyncio.Future[T]":
    """One of the running loop."""
    return asyncio.get_running_loop().create_future()


def resolve(future: asyncio.Future[T], result: T) -> bool:
    """Resolves a future, unless whoever waited for it has cancelled it."""
    if future.done():
        return False
    future.set_result(result)
    return True


@dataclass(frozen=True, slots=True)
class ForkedWorker:
    """A process that was forked."""

    process: ProcessHandle
    """As the kernel knows it."""
    serving: asyncio.Future[None] = field(default_factory=future)
    """Done once its socket takes connections."""
    exited: asyncio.Future[Exit] = field(default_factory=future)
    """Done once it has ended, or its zygote is lost, with which it dies."""

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid


class ForkedWorkers:
    """The workers of one zygote. Belongs to the event loop."""

    def __init__(self) -> None:
        self._by_pid: dict[int, ForkedWorker] = {}
        self._serving_early: set[int] = set()
        """Process ids of those that serve, of which the zygote has not told yet."""

    @property
    def processes(self) -> list[ProcessHandle]:
        """Those that have not ended."""
        return [worker.process for worker in self._by_pid.values()]

    def forked(self, pid: int) -> ForkedWorker:
        """Notes that the zygote tells of a worker.

        Raises:
            OSError: It cannot be watched, and was killed.
        """
        serves = pid in self._serving_early
        self._serving_early.discard(pid)
        try:
            worker = self._by_pid[pid] = ForkedWorker(ProcessHandle(pid))
        except OSError:
            os.kill(pid, signal.SIGKILL)
            raise
        if serves:
            worker.serving.set_result(None)
        return worker

    def serving(self, pid: int) -> None:
        """Notes that a worker says it serves."""
        if worker := self._by_pid.get(pid):
            resolve(worker.serving, None)
        else:
            # The worker says so itself, and the zygote may be held up right after the fork:
            # what two processes send has no order.
            self._serving_early.add(pid)

    def exited(self, pid: int, status: int) -> None:
        """Notes that the zygote has waited for a worker."""
        if worker := self._by_pid.pop(pid, None):
            resolve(worker.exited, Exit(status))

    def orphaned(self) -> None:
        """Notes that the zygote has ended: the kernel kills its workers."""
        for worker in self._by_pid.values():
            resolve(worker.exited, Exit(signal.SIGKILL, orphaned=True))
        self._by_pid.clear()
