"""One zygote, as its agent sees it: the process, what it was asked for, and whom it has forked."""

import asyncio
import itertools
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import structlog

from sllm import errors
from sllm.node.instances.forked import ForkedWorker, ForkedWorkers, future, resolve
from sllm.node.instances.pidfd import ProcessHandle
from sllm.node.worker.messages import (
    MAX_PACKET_BYTES,
    AdapterDescribed,
    Described,
    Exited,
    Failed,
    Fork,
    Forked,
    Message,
    Probed,
    Ready,
    Serving,
    from_packet,
    to_packet,
)

log = structlog.get_logger()

READY_SECONDS: Final = 600.0
"""What a zygote may take to import everything: seconds by itself, minutes where others compute."""
ANSWER_SECONDS: Final = 60.0
"""What one that is ready may take for a fork or a description."""
END_SECONDS: Final = 5.0
"""What it may take to end by itself before it is killed."""

_COMMAND = (sys.executable, "-m", "sllm.node.worker")
_MEMORY = {
    # glibc would give the kernel back what each layer's larger tensors took, and take fresh pages
    # for the next: a third to half of the time of a step with long requests. Bytes.
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
}
"""What the agent's own environment may have otherwise."""
ENVIRONMENT = {
    # Threads of its own would not survive a fork; workers compute with torch's.
    "OPENBLAS_NUM_THREADS": "1",
    # By default a thread of OpenMP that waits for work spins, and takes the processor from others:
    # with as few as two workers at work, each becomes many times slower.
    "OMP_WAIT_POLICY": "PASSIVE",
    # Tensors are in memory when a module is built: threads that fetch them gain nothing, and where
    # processors are short each waits for its turn.
    "HF_DEACTIVATE_ASYNC_LOAD": "1",
    # A worker has its files; it never looks for any elsewhere.
    "HF_HUB_OFFLINE": "1",
    # No fork survives CUDA: the zygote sees no device, and a worker is told of its own. Asking
    # whether there is one must not initialise CUDA either.
    "CUDA_VISIBLE_DEVICES": "",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}
"""Of every process that computes here, whatever the agent's own environment has."""


class ZygoteLost(Exception):
    """The zygote has ended before it did what it was asked. Another one may well do it."""


Answer = ForkedWorker | Described | AdapterDescribed | str


class ZygoteProcess:
    """A zygote from its start to its end. Belongs to one event loop, in the main thread."""

    def __init__(
        self,
        engine: str,
        child: "subprocess.Popen[bytes]",
        end: socket.socket,
        on_change: Callable[[], None],
    ) -> None:
        """Takes over a process that was started, and this end of its socket.

        Raises:
            OSError: there is no descriptor for the process.
        """
        self.lost = False
        """Whether it has ended, or is about to."""
        self._engine = engine
        self._on_change = on_change
        self._process = ProcessHandle(child.pid)
        self._child = child
        self._socket = end
        self._deadline = asyncio.get_running_loop().time() + READY_SECONDS
        self._ready = False
        self._ready_or_lost = asyncio.Event()
        self._numbers = itertools.count()
        self._calls: dict[int, asyncio.Future[Answer]] = {}
        self._workers = ForkedWorkers()
        self._sockets: dict[int, Path] = {}
        """Of the workers that were asked for, by the number of the call."""
        self._process.ended.add_done_callback(self._on_end)
        asyncio.get_running_loop().add_reader(end, self._receive)

    @classmethod
    def start(
        cls,
        engine: str,
        pool_fd: int,
        environment: Mapping[str, str],
        on_change: Callable[[], None] = lambda: None,
    ) -> "ZygoteProcess":
        """Starts the zygote of an engine, which gets ready by itself.

        Args:
            engine: By its name.
            pool_fd: The pool's memfd.
            environment: Variables to set, beside those of this process.
            on_change: Called once it is ready, and once it has ended.

        Raises:
            errors.StartFailed: The system has no process, memory or descriptor for it.
        """
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            raise errors.StartFailed(f"no zygote can be started: {error}") from error
        with theirs:
            try:
                child = _spawn(engine, theirs.fileno(), pool_fd, environment)
            except OSError as error:
                ours.close()
                raise errors.StartFailed(f"no zygote can be started: {error}") from error
        ours.setblocking(False)
        try:
            return cls(engine, child, ours, on_change)
        except OSError as error:
            ours.close()
            child.kill()
            child.wait()
            raise errors.StartFailed(f"the zygote cannot be watched: {error}") from error

    @property
    def ready(self) -> bool:
        """Whether it forks at once. One that is still importing has calls wait for seconds."""
        return self._ready and not self.lost

    @property
    def failed(self) -> bool:
        """Whether it has ended before it was ready, as where the engine does not work."""
        return self.lost and not self._ready

    async def until_ready(self) -> None:
        """Returns once it answers calls at once.

        Raises:
            ZygoteLost: It has ended.
            errors.StartFailed: It has not become ready in time, and was ended.
        """
        try:
            async with asyncio.timeout_at(self._deadline):
                await self._ready_or_lost.wait()
        except TimeoutError as error:
            self._process.send(signal.SIGKILL)
            self._lose()
            raise errors.StartFailed(
                f"the zygote was not ready within {READY_SECONDS:g} s, and was ended"
            ) from error
        if self.lost:
            raise ZygoteLost(f"zygote {self._process.pid} has ended")

    async def call(self, make: Callable[[int], Message]) -> Answer:
        """Sends the message that `make` gives for a call's number, and waits for the answer.

        Raises:
            ZygoteLost: It has ended.
            errors.StartFailed: It cannot be reached, or does not answer in time.
            errors.SllmError: What it answers with.
        """
        number = next(self._numbers)
        answer: asyncio.Future[Answer] = future()
        self._calls[number] = answer
        try:
            message = make(number)
            if isinstance(message, Fork):
                self._sockets[number] = Path(message.socket)
            self._send(message)
            return await asyncio.wait_for(answer, ANSWER_SECONDS)
        except TimeoutError as error:
            raise errors.StartFailed(
                f"no answer within {ANSWER_SECONDS:g} s from the zygote"
            ) from error
        except asyncio.CancelledError:
            if answer.done() and not (answer.cancelled() or answer.exception()):
                _give_back(answer.result())
            raise
        finally:
            self._calls.pop(number, None)

    async def close(self) -> None:
        """Ends the process; returns when it is gone, and its workers with it."""
        workers = [process.ended for process in self._workers.processes]
        self._lose()
        await asyncio.wait([self._process.ended], timeout=END_SECONDS)
        self._process.send(signal.SIGKILL)
        await self._process.ended
        if workers:
            await asyncio.wait(workers, timeout=END_SECONDS)

    def _send(self, message: Message) -> None:
        if self.lost:
            raise ZygoteLost(f"zygote {self._process.pid} has ended")
        try:
            self._socket.send(to_packet(message))
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ZygoteLost(f"zygote {self._process.pid} has ended") from error
        except OSError as error:
            raise errors.StartFailed(f"the zygote cannot be reached: {error}") from error

    def _receive(self) -> None:
        while not self.lost:
            try:
                packet = self._socket.recv(MAX_PACKET_BYTES)
            except BlockingIOError:
                return
            except ConnectionResetError:
                packet = b""
            if packet:
                self._take(from_packet(packet))
            else:
                self._note_loss()

    def _on_end(self, _: asyncio.Future[None]) -> None:
        self._receive()  # what it has said before
        self._note_loss()
        status = self._child.wait()  # at once: it has ended
        log.info("zygote.ended", pid=self._process.pid, status=status)

    def _take(self, message: Message) -> None:
        match message:
            case Ready():
                self._ready = True
                self._ready_or_lost.set()
                log.info("zygote.ready", pid=self._process.pid, engine=self._engine)
                self._on_change()
            case Serving(pid):
                self._workers.serving(pid)
            case Exited(pid, status):
                self._workers.exited(pid, status)
            case _:
                self._take_answer(message)

    def _take_answer(self, message: Message) -> None:
        match message:
            case Forked(call, pid):
                self._take_worker(call, pid)
            case Described(call) | AdapterDescribed(call):
                self._answer(call, message)
            case Probed(call, problem):
                self._answer(call, problem)
            case Failed(call, code, reason, text, metadata):
                self._fail(call, errors.make_error(code, reason, text, metadata=metadata))

    def _take_worker(self, call: int, pid: int) -> None:
        path = self._sockets.pop(call)
        try:
            worker = self._workers.forked(pid)
        except OSError as error:
            self._fail(call, errors.StartFailed(f"a worker cannot be watched: {error}"))
            return
        # Whoever waited for the worker may have left: its socket goes with the process.
        worker.process.ended.add_done_callback(lambda _: path.unlink(missing_ok=True))
        if not self._answer(call, worker):
            worker.process.send(signal.SIGKILL)  # nobody waits for it any more

    def _answer(self, call: int, answer: Answer) -> bool:
        pending = self._calls.get(call)
        return pending is not None and resolve(pending, answer)

    def _fail(self, call: int, error: Exception) -> None:
        self._sockets.pop(call, None)
        pending = self._calls.get(call)
        if pending and not pending.done():
            pending.set_exception(error)

    def _note_loss(self) -> None:
        if not self.lost:
            log.error("zygote.lost", pid=self._process.pid, engine=self._engine)
            self._lose()

    def _lose(self) -> None:
        """Gives up on the process: the kernel kills the workers of a zygote that ends."""
        if self.lost:
            return
        self.lost = True
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        self._ready_or_lost.set()
        self._workers.orphaned()
        for call in self._calls:
            self._fail(call, ZygoteLost(f"zygote {self._process.pid} has ended"))
        self._on_change()


def _give_back(answer: Answer) -> None:
    """Ends the worker that an answer is of, which came just as nobody waited for it any more."""
    if isinstance(answer, ForkedWorker):
        answer.process.send(signal.SIGKILL)


def _spawn(
    engine: str, agent_fd: int, pool_fd: int, environment: Mapping[str, str]
) -> "subprocess.Popen[bytes]":
    # Not the event loop's way: uvloop forks, and then handlers run in the child that gRPC has
    # registered for forks. With many threads under way they crash now and then. This way has
    # none (vfork), and holds the loop up for a millisecond or two. It must be this very thread,
    # as workers die with the thread that has made the zygote.
    return subprocess.Popen(
        [*_COMMAND, engine, *map(str, (agent_fd, pool_fd, os.getpid()))],
        pass_fds=(agent_fd, pool_fd),
        stdin=subprocess.DEVNULL,
        env={**_MEMORY, **os.environ, **environment, **ENVIRONMENT},
    )
