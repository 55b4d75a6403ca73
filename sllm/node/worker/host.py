"""The one model of a worker process: prepared, then attached to its weights, then serving."""

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

import structlog

from sllm.checkpoint.format.form import WeightForm
from sllm.embedding.purpose import Task
from sllm.errors import (
    EngineUnavailable,
    InvalidArgument,
    SllmError,
    WorkerDied,
)
from sllm.node.worker.backends.interface import Backend
from sllm.node.worker.building import BuiltModel, GivenWeights, build
from sllm.node.worker.engine import int8_pages
from sllm.node.worker.engine.int8_pages import Int8Pages
from sllm.node.worker.engine.interface import Capacity, Counters, Engine, Step
from sllm.node.worker.engine.yielding import YieldingEngine
from sllm.node.worker.generations import Generations
from sllm.node.worker.making_ready import Making
from sllm.node.worker.messages import ModelDescription
from sllm.node.worker.model.held_weights import PooledWeights
from sllm.node.worker.model.module import run_dtype
from sllm.node.worker.model.refusing import CANNOT_RUN, refusing
from sllm.node.worker.model.texts import Texts
from sllm.node.worker.page_keeping import PageKeeping
from sllm.node.worker.preparing import (
    EngineOptions,
    Prepared,
    PreparedModel,
    capacity_of,
    pass_tokens,
    prepare_model,
)
from sllm.node.worker.rank_watch import RankWatch
from sllm.node.worker.ranks import END_SECONDS, Ranks, make_ready
from sllm.node.worker.running import ParameterLocation, RunningModel, encoding, generating
from sllm.node.worker.weights_use import WeightsUse

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Attached:
    """How bringing the model up went."""

    attach_seconds: float
    """Mapping the weights and building the module."""
    engine_seconds: float
    """Creating the engine and its KV cache."""
    context_tokens: int
    """What prompt and generation of one request may have together."""
    read_bytes: tuple[int, ...] = ()
    """Of the weights, where they lie, copied by each rank; one number if there is one rank. Empty:
    the engine copies none."""
    disk_seconds: float = 0.0
    """Of `attach_seconds`, the first, for what was read from disk."""
    disk_bytes: int = 0


class ModelHost:
    """Belongs to the event loop; what takes long runs in threads beside it."""

    def __init__(self, pool_fd: int, backend: Backend, ranks: Ranks) -> None:
        """Holds nothing yet.

        Args:
            pool_fd: the agent's pool.
            backend: of the engine.
            ranks: the other processes that run the model.
        """
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the worker is of no use any more, and all requests have been told."""
        self.weights_use = WeightsUse()
        self._pool_fd = pool_fd
        self._backend = backend
        self._prepared: PreparedModel | None = None
        self._running: RunningModel | None = None
        self._ranks = ranks
        self._rank_watch = RankWatch(ranks, self.fail)
        self._closing = False
        self._up = False
        """Whether there is an engine that can end by itself."""

    async def prepare(self, directory: Path, options: EngineOptions) -> Prepared:
        """Loads what does not need the weights.

        Raises:
            EngineUnavailable: The engine is another one than this worker's.
            InvalidArgument: The worker was forked for another number of ranks, or several of them
                are to take adapters.
            UnsupportedModel: The engine cannot run the model.
        """
        if options.engine != self._backend.name:
            raise EngineUnavailable(f"this worker runs {self._backend.name}, not {options.engine}")
        if options.ranks != self._ranks.group.rank.size:
            size = self._ranks.group.rank.size
            raise InvalidArgument(f"this worker is {size} processes, not {options.ranks}")
        if options.ranks > 1 and options.takes_adapters:
            raise InvalidArgument(
                f"a model that {options.ranks} processes run takes no adapters (max_adapters)"
            )
        began = time.monotonic()
        self._prepared = await asyncio.to_thread(prepare_model, directory, options, self._backend)
        self._ranks.prepare(directory)  # which the first has found to be of use
        prepared = self._prepared
        return Prepared(time.monotonic() - began, prepared.description, prepared.warm_up)

    async def attach(
        self,
        weights: GivenWeights,
        kv_bytes: int,
        more_kv_bytes: int = 0,
        *,
        tell_first_use: bool = False,
    ) -> Attached:
        """Builds the model over its weights, where the agent holds them, and starts the engine.

        Args:
            weights: where they are.
            kv_bytes: memory that the KV cache may take.
            more_kv_bytes: what it may come to take beside that; see `RunningModel.resize_cache`.
            tell_first_use: whether `weights_use` is to see what is used first.

        Raises:
            InvalidArgument: Not prepared, attached before, a tensor is not in what was given, or
                the engine cannot wait for weights.
            NoCapacity: There is no room for a KV cache.
            DeviceFailed: The device's memory cannot be opened.
            UnsupportedModel: The weights are not those of the model.
            WorkerDied: Another process that was to run the model has ended.
            CheckpointCorrupt, CheckpointUnreadable: Of weights on disk.
        """
        prepared = self._prepared
        if prepared is None or self._running is not None:
            raise InvalidArgument("a worker attaches once, after it has prepared")
        began = time.monotonic()
        self._check_ranks(weights)
        group = self._ranks.group
        built = await asyncio.to_thread(
            build, prepared.files, self._backend, weights, self._pool_fd, group
        )
        self.weights_use.watch(built, weights, tell_first_use=tell_first_use)
        attached = time.monotonic()
        with refusing(CANNOT_RUN):
            running = await self._begin(prepared, built, weights, kv_bytes, more_kv_bytes)
        await asyncio.to_thread(self.weights_use.settle)
        self._up = True
        return Attached(
            attached - began,
            time.monotonic() - attached,
            running.context_tokens,
            built.loaded.read_bytes(),
            built.disk_seconds,
            built.disk_bytes,
        )

    async def _begin(
        self,
        prepared: PreparedModel,
        built: BuiltModel,
        weights: GivenWeights,
        kv_bytes: int,
        more_kv_bytes: int,
    ) -> RunningModel:
        """Starts the engine, in as much memory as it is given for a KV cache."""
        if prepared.description.purpose.task is Task.GENERATE:
            dtype = run_dtype(prepared.files.architecture.config, built.held.given)
            capacity = capacity_of(prepared, self._backend, dtype, kv_bytes, more_kv_bytes)
            generating = self._begin_generating(prepared, built, weights, capacity)
            return await self._rank_watch.while_none_is_lost(generating)
        return await self._begin_encoding(prepared, built, kv_bytes)

    async def _begin_generating(
        self, prepared: PreparedModel, built: BuiltModel, weights: GivenWeights, capacity: Capacity
    ) -> RunningModel:
        if isinstance(weights, PooledWeights):
            await asyncio.to_thread(self._ranks.attach, prepared.files.directory, weights, capacity)
        engine = YieldingEngine(built.loaded.engine(capacity))
        running = generating(prepared, built, engine, capacity.kv_tokens, self._pool_fd)
        self._running = running
        loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._start, engine, running.generations, loop)
        return running

    async def _begin_encoding(
        self, prepared: PreparedModel, built: BuiltModel, kv_bytes: int
    ) -> RunningModel:
        loop, tokens = asyncio.get_running_loop(), pass_tokens(prepared, kv_bytes)
        encoder = built.loaded.encoder(prepared.description.purpose, tokens)
        running = self._running = encoding(prepared, built, encoder)

        def on_failure(error: Exception) -> None:
            loop.call_soon_threadsafe(self.fail, error)

        encoder.start(on_failure)
        return running

    async def make_ready(self, weights: PooledWeights, directory: Path, form: WeightForm) -> float:
        """Writes weights as the engine's kernels read them, giving way to whoever else computes.

        Args:
            weights: as published.
            directory: of the checkpoint that is made; not there yet.
            form: what it is for.

        Returns:
            Seconds that it took.

        Raises:
            InvalidArgument: Not prepared, or a tensor is not in what was given.
            UnsupportedModel: The weights are not those of the model, or are not kept in this way.
            NoCapacity: The disk is full.
            WorkerDied: Another process that was to make its part has ended.
        """
        prepared, began = self._checked(), time.monotonic()
        making = Making(prepared.files.directory, weights, directory, form, gives_way=True)
        work = asyncio.to_thread(
            make_ready, self._backend, prepared.files, self._pool_fd, making, self._ranks
        )
        await self._rank_watch.while_none_is_lost(work)
        return time.monotonic() - began

    def keep_pages(self, scope: str, *, int8: bool = False) -> PageKeeping | None:
        """Has pages of the engine's cache outlive it from now on. None: it has none that can.

        Args:
            scope: whose they are.
            int8: whether they are kept with eight bits a number, where they can be.

        Raises:
            InvalidArgument: The worker is not attached, or does so already.
        """
        requests, pages = self.running.requests, self.running.pages
        if not isinstance(requests, Generations) or pages is None:
            return None
        if requests.keeping:
            raise InvalidArgument("a worker has its pages kept by one call at a time")
        if int8 and int8_pages.takes(pages.layout):
            pages = Int8Pages(pages)
        requests.keeping = PageKeeping(pages, self._pool_fd, scope, requests.prefix)
        return requests.keeping

    def stop_keeping(self, keeping: PageKeeping) -> None:
        """Ends that."""
        keeping.close()
        self.running.generations.keeping = None

    @property
    def rank_pids(self) -> tuple[int, ...]:
        """Processes that run the model beside this one."""
        return tuple(one.pid for one in self._ranks.processes)

    @property
    def texts(self) -> Texts:
        """What the model makes of text.

        Raises:
            InvalidArgument: The worker has not prepared a model.
        """
        return self._checked().texts

    @property
    def description(self) -> ModelDescription:
        """What the model's configuration says of it.

        Raises:
            InvalidArgument: The worker has not prepared a model.
        """
        return self._checked().description

    @property
    def running(self) -> RunningModel:
        """The model with its engine.

        Raises:
            InvalidArgument: The worker is not attached.
        """
        if self._running is None:
            raise InvalidArgument("the worker takes requests once it is attached")
        return self._running

    @property
    def counters(self) -> Counters:
        """Of the engine, or all zero before there is one."""
        return self._running.engine.counters if self._running else Counters()

    @property
    def mapped(self) -> tuple[int, int]:
        """First address and length of the weights; (0, 0) before they are there."""
        weights = self._running.weights if self._running else None
        return (weights.address, weights.size_bytes) if weights else (0, 0)

    def parameters(self) -> list[ParameterLocation]:
        """Where the parameters are, if weights are used where they lie; tied ones once."""
        return self._running.parameters() if self._running else []

    def fail(self, error: Exception) -> None:
        """Gives up: all requests are told, and the process is to end."""
        if self.failed.done() or self._closing:
            return
        log.error("worker.failed", exc_info=error)
        reason = error if isinstance(error, SllmError) else WorkerDied(f"worker failed: {error!r}")
        if self._running:
            self._running.requests.fail_all(reason)
            self._running.outbox.close()
        self.failed.set_result(None)

    async def close(self) -> None:
        """Ends the engine and all requests."""
        self._closing = True
        self.weights_use.close()
        if self._prepared:
            self._prepared.texts.close()
        if self._running:
            self._running.requests.close()
            self._running.outbox.close()
            if not self.failed.done():
                await asyncio.to_thread(self._running.engine.stop)
            self._running.requests.release()  # what a last step has needed
        self._rank_watch.close()
        grace = END_SECONDS if self._up and not self.failed.done() else 0
        await asyncio.to_thread(self._ranks.close, grace)

    def _checked(self) -> PreparedModel:
        if self._prepared is None:
            raise InvalidArgument("the worker has not prepared a model")
        return self._prepared

    def _check_ranks(self, weights: GivenWeights) -> None:
        if not self._ranks.processes:
            return
        if not isinstance(weights, PooledWeights):
            raise InvalidArgument(
                "a model that several processes run takes its weights out of the pool"
            )

    def _start(
        self, engine: Engine, generations: Generations, loop: asyncio.AbstractEventLoop
    ) -> None:
        def take_step(step: Step) -> None:
            try:
                generations.take_step(step)
            except Exception as error:
                self.fail(error)

        def on_step(step: Step) -> None:
            loop.call_soon_threadsafe(take_step, step)

        def on_failure(error: Exception) -> None:
            loop.call_soon_threadsafe(self._rank_watch.fail_engine, error)

        engine.start(on_step, on_failure)
