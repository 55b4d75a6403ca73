"""The agent's end of the zygote, the process that workers are forked from."""

import asyncio
import itertools
import os
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import structlog

from sllm import errors
from sllm.node.instances.pidfd import ForeignProcess
from sllm.node.worker.messages import (
    MAX_PACKET_BYTES,
    Describe,
    Described,
    Exited,
    Failed,
    Fork,
    Forked,
    Message,
    ModelDescription,
    Probe,
    Probed,
    Ready,
    Serving,
    from_packet,
    to_packet,
)

log = structlog.get_logger()

T = TypeVar("T")

CALL_TIMEOUT = 60.0
"""Seconds for a fork or a description, a zygote's whole start included."""
TRIALS = 2
"""Models that are tried at once; each takes a processor for a second or so."""
COMPARED = 500
"""Kinds of models that are remembered as found right; they fit one packet."""
END_TIMEOUT = 5.0
"""Seconds that a zygote has to end by itself before it is killed."""

_MEMORY = {
    # glibc would give the kernel back what each layer's larger tensors took, and take fresh pages
    # for the next: a third to half of the time of a step with long requests. Bytes.
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
}
"""What the agent's own environment may have otherwise."""
_ENVIRONMENT = {
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


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """A worker to fork."""

    instance_id: str
    socket: Path
    """Unix socket to serve on."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables to set, beside those of the agent."""


@dataclass(frozen=True, slots=True)
class ForkedWorker:
    """A process that was forked."""

    pid: int
    serving: asyncio.Future[None]
    """Done once its socket takes connections."""
    exited: asyncio.Future[int]
    """Its wait status, once it has ended; told as soon as the zygote is lost, too, which it dies
    with."""
    process: ForeignProcess
    """As the kernel knows it."""


Answer = ForkedWorker | Described | str


class Zygote:
    """Forks workers. A zygote that dies takes them along; the next call starts another.

    Belongs to one event loop, in the main thread: workers die with the thread that made the
    zygote.
    """

    def __init__(self) -> None:
        self._pool_fd = -1
        self._connection: _Connection | None = None
        self._opening = asyncio.Lock()
        self._trials = asyncio.Semaphore(TRIALS)
        self._compared: dict[str, None] = {}
        """The features of models for which the engine was found right, the latest last."""

    async def start(self, pool_fd: int) -> None:
        """Starts the process and returns; calls wait until it is ready.

        Args:
            pool_fd: the pool's memfd, which workers map.
        """
        self._pool_fd = pool_fd
        self._connection = await _Connection.open(pool_fd)

    @property
    def is_ready(self) -> bool:
        """Whether it forks at once. One that is still importing has calls wait for seconds."""
        connection = self._connection
        return connection is not None and connection.ready and not connection.lost

    async def fork(self, spec: WorkerSpec) -> ForkedWorker:
        """Forks a worker, and returns once its socket takes connections.

        Raises:
            errors.StartFailed: The zygote or the worker ended or did not answer.
        """
        environment = dict(spec.environment)
        answer = await self._call(
            lambda call: Fork(call, spec.instance_id, str(spec.socket), environment)
        )
        assert isinstance(answer, ForkedWorker)
        await _until_serving(answer)
        return answer

    async def describe(self, directory: Path, dtype: str | None) -> ModelDescription:
        """Tries whether a worker could serve the model in `directory`, and says what it needs.

        Args:
            directory: has its small files, and its weights or their headers.
            dtype: name of a torch dtype that weights are converted to. None: as stored.

        Raises:
            errors.UnsupportedModel: The engine cannot run it, or not right; says why.
            errors.StartFailed: The zygote ended or did not answer.
        """
        async with self._trials:
            compared = list(self._compared)
            answer = await self._call(lambda call: Describe(call, str(directory), dtype, compared))
        assert isinstance(answer, Described)
        self._remember(answer.features)
        return answer.model

    async def probe(self, environment: Mapping[str, str]) -> str:
        """Why the engine could not use a device in a worker with these variables; empty: it could.

        Raises:
            errors.Internal: It crashed in the attempt.
            errors.StartFailed: The zygote ended or did not answer.
        """
        answer = await self._call(lambda call: Probe(call, dict(environment)))
        assert isinstance(answer, str)
        return answer

    async def close(self) -> None:
        """Ends the zygote and all its workers."""
        if self._connection:
            await self._connection.close()

    def _remember(self, features: str) -> None:
        self._compared.pop(features, None)
        self._compared[features] = None
        while len(self._compared) > COMPARED:
            del self._compared[next(iter(self._compared))]

    async def _call(self, make: Callable[[int], Message]) -> Answer:
        connection = await self._connected()
        try:
            return await asyncio.wait_for(connection.call(make), CALL_TIMEOUT)
        except TimeoutError:
            raise errors.StartFailed(f"no answer within {CALL_TIMEOUT} s from the zygote") from None

    async def _connected(self) -> "_Connection":
        async with self._opening:
            if self._connection is None or self._connection.lost:
                log.warning("zygote.restarting")
                self._connection = await _Connection.open(self._pool_fd)
            return self._connection


async def _until_serving(worker: ForkedWorker) -> None:
    """Returns once a worker serves; one that does not is killed."""
    either: list[asyncio.Future[Any]] = [worker.serving, worker.exited]
    try:
        await asyncio.wait(either, timeout=CALL_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
    finally:
        if not (worker.serving.done() or worker.exited.done()):
            os.kill(worker.pid, signal.SIGKILL)
    if not worker.serving.done():
        raise errors.StartFailed(f"worker process {worker.pid} ended before it served")


def _resolve(future: asyncio.Future[T], result: T) -> bool:
    """Resolves a future, unless whoever waited for it has cancelled it."""
    if future.done():
        return False
    future.set_result(result)
    return True


class _Connection:
    """One zygote process and what it was asked for."""

    def __init__(self, process: Process, end: socket.socket) -> None:
        self.lost = False
        self.ready = False
        self._process = process
        self._socket = end
        self._numbers = itertools.count()
        self._calls: dict[int, asyncio.Future[Answer]] = {}
        self._workers: dict[int, ForkedWorker] = {}
        self._sockets: dict[int, Path] = {}
        """Of the workers that were asked for, by the number of the call."""
        asyncio.get_running_loop().add_reader(end, self._receive)

    @classmethod
    async def open(cls, pool_fd: int) -> "_Connection":
        """Starts a zygote."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "sllm.node.worker"),
                *map(str, (theirs.fileno(), pool_fd, os.getpid())),
                pass_fds=(theirs.fileno(), pool_fd),
                stdin=DEVNULL,
                env={**_MEMORY, **os.environ, **_ENVIRONMENT},
            )
        return cls(process, ours)

    async def call(self, make: Callable[[int], Message]) -> Answer:
        """Sends a message and waits for its answer."""
        number = next(self._numbers)
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._calls[number] = answer
        try:
            message = make(number)
            if isinstance(message, Fork):
                self._sockets[number] = Path(message.socket)
            self._socket.send(to_packet(message))
            return await answer
        except OSError as error:
            raise errors.StartFailed(f"the zygote cannot be reached: {error}") from error
        finally:
            self._calls.pop(number, None)

    async def close(self) -> None:
        """Ends the process; returns when it is gone, and its workers with it."""
        workers = [worker.process.ended for worker in self._workers.values()]
        self._lose()
        try:
            await asyncio.wait_for(self._process.wait(), END_TIMEOUT)
        except TimeoutError:
            with suppress(ProcessLookupError):  # it may have ended at this very moment
                self._process.kill()
            await self._process.wait()
        if workers:
            await asyncio.wait(workers, timeout=END_TIMEOUT)

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
                log.error("zygote.lost", pid=self._process.pid)
                self._lose()

    def _take(self, message: Message) -> None:
        match message:
            case Ready():
                self.ready = True
                log.info("zygote.ready", pid=self._process.pid)
            case Forked(call, pid):
                self._take_worker(call, pid)
            case Serving(pid):
                if worker := self._workers.get(pid):
                    _resolve(worker.serving, None)
            case Exited(pid, status):
                if worker := self._workers.pop(pid, None):
                    _resolve(worker.exited, status)
            case _:
                self._take_answer(message)

    def _take_answer(self, message: Message) -> None:
        match message:
            case Described(call):
                self._answer(call, message)
            case Probed(call, problem):
                self._answer(call, problem)
            case Failed(call, code, reason, text, metadata):
                self._fail(call, errors.make_error(code, reason, text, metadata=metadata))

    def _take_worker(self, call: int, pid: int) -> None:
        loop, path = asyncio.get_running_loop(), self._sockets.pop(call)
        try:
            process = ForeignProcess(pid)
        except OSError as error:
            os.kill(pid, signal.SIGKILL)
            self._fail(call, errors.StartFailed(f"a worker cannot be watched: {error}"))
            return
        # Whoever waited for the worker may have left: its socket goes with the process.
        process.ended.add_done_callback(lambda _: path.unlink(missing_ok=True))
        worker = ForkedWorker(pid, loop.create_future(), loop.create_future(), process)
        self._workers[pid] = worker
        if not self._answer(call, worker):
            os.kill(pid, signal.SIGKILL)  # nobody waits for it any more

    def _fail(self, call: int, error: errors.SllmError) -> None:
        self._sockets.pop(call, None)
        pending = self._calls.get(call)
        if pending and not pending.done():
            pending.set_exception(error)

    def _answer(self, call: int, answer: Answer) -> bool:
        pending = self._calls.get(call)
        return pending is not None and _resolve(pending, answer)

    def _lose(self) -> None:
        """Gives up on the process: the kernel kills the workers of a zygote that ends."""
        if self.lost:
            return
        self.lost = True
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        for worker in self._workers.values():
            _resolve(worker.exited, signal.SIGKILL)
        for pending in self._calls.values():
            if not pending.done():
                pending.set_exception(errors.StartFailed("the zygote has ended"))
        self._workers.clear()
