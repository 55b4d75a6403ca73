"""The one model of a worker process: prepared, then attached to its weights, then serving."""

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

import structlog
import torch

from sllm.checkpoint.format.form import WeightForm
from sllm.embedding.purpose import Task
from sllm.errors import (
    EngineUnavailable,
    InvalidArgument,
    SllmError,
    WorkerDied,
)
from sllm.node.worker.adapters import Adapters
from sllm.node.worker.backends.interface import Backend, Loaded
from sllm.node.worker.encodings import Encodings
from sllm.node.worker.engine import int8_pages
from sllm.node.worker.engine.int8_pages import Int8Pages
from sllm.node.worker.engine.interface import Counters, Engine, Step
from sllm.node.worker.engine.yielding import YieldingEngine
from sllm.node.worker.experts.on_demand import WeightsOnDisk
from sllm.node.worker.generations import Generations
from sllm.node.worker.making_ready import Making
from sllm.node.worker.messages import ModelDescription
from sllm.node.worker.model.description import context_tokens
from sllm.node.worker.model.device_weights import DeviceWeights
from sllm.node.worker.model.held_weights import HeldWeights, PooledWeights, hold
from sllm.node.worker.model.module import run_dtype
from sllm.node.worker.model.refusing import CANNOT_RUN, refusing
from sllm.node.worker.model.texts import Texts
from sllm.node.worker.on_disk import AttachedOnDisk, attach_on_disk
from sllm.node.worker.outbox import Outbox
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
from sllm.node.worker.running import ParameterLocation, RunningModel
from sllm.node.worker.weights_use import WeightsUse

log = structlog.get_logger()

GivenWeights = PooledWeights | DeviceWeights | WeightsOnDisk
"""Where a model's weights are."""


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
        *,
        tell_first_use: bool = False,
    ) -> Attached:
        """Builds the model over its weights, where the agent holds them, and starts the engine.

        Args:
            weights: where they are.
            kv_bytes: memory that the KV cache may take.
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
        held, loaded, on_disk = await asyncio.to_thread(self._attach, prepared, weights)
        self.weights_use.experts = on_disk.experts if on_disk else None
        self.weights_use.watch(held, loaded, weights, tell_first_use=tell_first_use)
        attached = time.monotonic()
        with refusing(CANNOT_RUN):
            if prepared.description.purpose.task is Task.GENERATE:
                context = await self._rank_watch.while_none_is_lost(
                    self._begin_generating(prepared, held, loaded, weights, kv_bytes)
                )
            else:
                context = await self._begin_encoding(prepared, held, loaded, kv_bytes)
        await asyncio.to_thread(self.weights_use.settle)
        self._up = True
        started = time.monotonic()
        read = loaded.read_bytes()
        times = attached - began, started - attached
        if on_disk is None:
            return Attached(*times, context, read)
        return Attached(*times, context, read, on_disk.read_seconds, on_disk.read_bytes)

    async def _begin_generating(
        self,
        prepared: PreparedModel,
        held: HeldWeights,
        loaded: Loaded,
        weights: GivenWeights,
        kv_bytes: int,
    ) -> int:
        """Starts the engine; gives the tokens that prompt and generation may have together."""
        config = prepared.files.architecture.config
        dtype = run_dtype(config, held.given)
        capacity = capacity_of(prepared, self._backend, dtype, kv_bytes)
        if isinstance(weights, PooledWeights):
            directory = prepared.files.directory
            await asyncio.to_thread(self._ranks.attach, directory, weights, capacity)
        context = min(context_tokens(config), capacity.kv_tokens)
        engine, outbox = YieldingEngine(loaded.engine(capacity)), Outbox()
        adapters = self._new_adapters(prepared, held, engine)
        generations = Generations(
            prepared.files,
            prepared.texts,
            prepared.parsers,
            engine,
            context,
            outbox,
            adapters,
            prepared.images,
        )
        self._running = RunningModel(held, loaded, engine, generations, outbox, adapters)
        await asyncio.to_thread(self._start, engine, generations, asyncio.get_running_loop())
        return context

    def _new_adapters(
        self, prepared: PreparedModel, held: HeldWeights, engine: Engine
    ) -> Adapters | None:
        if not prepared.options.takes_adapters:
            return None
        device = torch.device("cuda" if held.on_device else "cpu")
        return Adapters(self._pool_fd, engine, device)

    async def _begin_encoding(
        self, prepared: PreparedModel, held: HeldWeights, loaded: Loaded, kv_bytes: int
    ) -> int:
        """Starts the encoder; gives the tokens that it sees of one text."""
        loop, context = asyncio.get_running_loop(), prepared.description.context_tokens
        encoder = loaded.encoder(prepared.description.purpose, pass_tokens(prepared, kv_bytes))
        encodings = Encodings(prepared.files, prepared.texts, encoder, context)
        self._running = RunningModel(held, loaded, encoder, encodings, Outbox())

        def on_failure(error: Exception) -> None:
            loop.call_soon_threadsafe(self.fail, error)

        encoder.start(on_failure)
        return context

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

    def _attach(
        self, prepared: PreparedModel, weights: GivenWeights
    ) -> tuple[HeldWeights, Loaded, AttachedOnDisk | None]:
        if isinstance(weights, WeightsOnDisk):
            found = attach_on_disk(prepared.files, self._backend, weights)
            return found.held, found.loaded, found
        held = hold(self._pool_fd, weights)
        load, group = self._backend.load, self._ranks.group
        loaded = load(prepared.files, held.given, on_device=held.on_device, group=group)
        return held, loaded, None

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
