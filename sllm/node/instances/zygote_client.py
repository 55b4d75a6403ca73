"""The agent's end of an engine's zygote, the process that workers are forked from."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL
from types import MappingProxyType
from typing import Any, Final, TypeVar

import structlog

from sllm import errors
from sllm.node.instances.forked import ForkedWorker
from sllm.node.instances.zygote_process import ZygoteLost, ZygoteProcess
from sllm.node.worker.messages import (
    NO_PARSERS,
    AdapterDescribed,
    Describe,
    DescribeAdapter,
    Described,
    Fork,
    ModelDescription,
    ParserNames,
    Probe,
)

log = structlog.get_logger()

T = TypeVar("T")

SERVING_SECONDS: Final = 60.0
"""What a worker may take from its fork until its socket takes connections."""
TRIES: Final = 3
"""Zygotes that are asked, one after the other, where each of them is lost meanwhile."""
TRIALS: Final = 2
"""Models that are tried at once; each takes a processor for a second or so."""
COMPARED: Final = 500
"""Kinds of models that are remembered as found right; they fit one packet."""


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """A worker to fork."""

    instance_id: str
    socket: Path
    """Unix socket to serve on; what is there goes."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables to set, beside those of the agent."""
    ranks: int = 1
    """Processes that run the model together."""


class Zygote:
    """Forks an engine's workers. A zygote that dies takes them along; the next call starts another.

    A call that only fails because its zygote has died is made again. Belongs to one event loop,
    in the main thread: workers die with the thread that made the zygote.
    """

    def __init__(
        self,
        engine: str,
        environment: Mapping[str, str] = MappingProxyType({}),
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """Starts nothing yet.

        Args:
            engine: By its name.
            environment: Variables of the zygote and its workers, beside those of this process.
            on_change: Called when it has become ready, or has ended.
        """
        self.engine = engine
        self._environment = environment
        self._on_change = on_change
        self._pool_fd = -1
        self._process: ZygoteProcess | None = None
        self._trials = asyncio.Semaphore(TRIALS)
        self._compared: dict[str, None] = {}
        """The features of models for which the engine was found right, the latest last."""
        self._closed = False

    def start(self, pool_fd: int) -> None:
        """Starts the process and returns; calls wait until it is ready.

        Args:
            pool_fd: the pool's memfd, which workers map.

        Raises:
            errors.StartFailed: The system has no process, memory or descriptor for it.
        """
        self._pool_fd = pool_fd
        self._process = self._started()

    @property
    def is_ready(self) -> bool:
        """Whether it forks at once. One that is still importing has calls wait for seconds."""
        return self._process is not None and self._process.ready

    @property
    def has_failed(self) -> bool:
        """Whether the last process has ended before it was ready: the engine may not work here."""
        return self._process is not None and self._process.failed

    async def fork(self, spec: WorkerSpec) -> ForkedWorker:
        """Forks a worker, and returns once its socket takes connections.

        Raises:
            errors.StartFailed: The zygote or the worker ended or did not answer.
        """
        message = (spec.instance_id, str(spec.socket), dict(spec.environment), spec.ranks)

        async def fork(process: ZygoteProcess) -> ForkedWorker:
            spec.socket.unlink(missing_ok=True)  # a worker of a zygote that was lost had its own
            worker = await process.call(lambda call: Fork(call, *message))
            assert isinstance(worker, ForkedWorker)
            await _until_serving(worker)
            return worker

        return await self._ask(fork)

    async def describe(
        self,
        directory: Path,
        dtype: str | None,
        parsers: ParserNames = NO_PARSERS,
        *,
        takes_adapters: bool = False,
        ranks: int = 1,
        on_disk: bool = False,
    ) -> ModelDescription:
        """Tries whether a worker could serve the model in `directory`, and says what it needs.

        Args:
            directory: has `config.json`; weights are not looked at.
            dtype: name of a torch dtype that weights are converted to. None: as stored.
            parsers: that are to take its answers apart.
            ranks: processes that run it together.
            takes_adapters: whether it is to be run with adapters.
            on_disk: whether its experts are to be read as they are used.

        Raises:
            errors.UnsupportedModel: The engine cannot run it; says why.
            errors.StartFailed: The zygote ended or did not answer.
        """
        async with self._trials:
            compared = list(self._compared)
            given = str(directory), dtype, compared, parsers, takes_adapters, ranks, on_disk
            answer = await self._ask(
                lambda process: process.call(lambda call: Describe(call, *given))
            )
        assert isinstance(answer, Described)
        self._remember(answer.features)
        if answer.unused:
            log.warning("node.tensors_unused", directory=str(directory), tensors=answer.unused)
        return answer.model

    async def describe_adapter(
        self, directory: Path, tensors: Path, base: Path, max_rank: int
    ) -> AdapterDescribed:
        """Holds an adapter against the model that is to be its base.

        Args:
            directory: has its settings.
            tensors: lists its tensors, as `DescribeAdapter` has it.
            base: has the base's small files.
            max_rank: that adapters of the base may have.

        Raises:
            errors.UnsupportedAdapter: It does not fit; says what.
            errors.StartFailed: The zygote ended or did not answer.
        """
        async with self._trials:
            paths = str(directory), str(tensors), str(base)
            answer = await self._ask(
                lambda process: process.call(lambda call: DescribeAdapter(call, *paths, max_rank))
            )
        assert isinstance(answer, AdapterDescribed)
        return answer

    async def probe(self, environment: Mapping[str, str]) -> str:
        """Why the engine could not use a device in a worker with these variables; empty: it could.

        Raises:
            errors.Internal: It crashed in the attempt.
            errors.StartFailed: The zygote ended or did not answer.
        """
        answer = await self._ask(
            lambda process: process.call(lambda call: Probe(call, dict(environment)))
        )
        assert isinstance(answer, str)
        return answer

    async def close(self) -> None:
        """Ends the zygote and all its workers."""
        self._closed = True
        if self._process:
            await self._process.close()

    def _remember(self, features: str) -> None:
        self._compared.pop(features, None)
        self._compared[features] = None
        while len(self._compared) > COMPARED:
            del self._compared[next(iter(self._compared))]

    async def _ask(self, ask: Callable[[ZygoteProcess], Awaitable[T]]) -> T:
        """What `ask` gets from a zygote that is ready; if that is lost meanwhile, from another."""
        lost: ZygoteLost | None = None
        for _ in range(TRIES):
            process = self._running()
            try:
                await process.until_ready()
                return await ask(process)
            except ZygoteLost as error:
                lost = error
        raise errors.StartFailed(
            f"{TRIES} zygotes of {self.engine} have ended, one after the other; the node's log "
            "says why"
        ) from lost

    def _running(self) -> ZygoteProcess:
        if self._closed:
            raise errors.ShuttingDown("the node is going down")
        if self._process is None or self._process.lost:
            log.warning("zygote.restarting", engine=self.engine)
            self._process = self._started()
        return self._process

    def _started(self) -> ZygoteProcess:
        return ZygoteProcess.start(self.engine, self._pool_fd, self._environment, self._on_change)


async def _until_serving(worker: ForkedWorker) -> None:
    """Returns once a worker serves; one that does not is killed.

    Raises:
        ZygoteLost: It has died with its zygote.
        errors.StartFailed: It ended, or did not serve in time.
    """
    either: list[asyncio.Future[Any]] = [worker.serving, worker.exited]
    try:
        await asyncio.wait(either, timeout=SERVING_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        worker.process.send(SIGKILL)  # also one that serves by now: nobody learns of it
        raise
    if worker.serving.done():
        return
    if not worker.exited.done():
        worker.process.send(SIGKILL)
    if worker.exited.done() and worker.exited.result().orphaned:
        raise ZygoteLost(f"worker process {worker.pid} has died with its zygote")
    raise errors.StartFailed(f"worker process {worker.pid} ended before it served")
