"""Checkpoints brought up before anybody asks for them, and kept there for a while."""

import asyncio
import math
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Final

from sllm import errors
from sllm.control.cluster.needs import Checkpoint, Need
from sllm.control.cluster.nodes import NodeView
from sllm.control.cluster.specs import AUTO, EngineConfig, ModelInfo
from sllm.control.cluster.tiers import Tier
from sllm.control.config import ControlConfig
from sllm.control.deployments.inspection import Inspector
from sllm.control.operations.jobs import Job
from sllm.control.placement import placement
from sllm.control.placement.decisions import Demand
from sllm.control.state import tier_bytes
from sllm.control.state.durable import Durable
from sllm.control.state.state import State
from sllm.control.tenants.limits import check_by_source
from sllm.control.tenants.names import tenant_of
from sllm.control.types import pins
from sllm.control.types.calls import Call
from sllm.control.types.operations import Placed, PrefetchAsk, Prefetched
from sllm.control.types.pins import Keep
from sllm.control.types.status import Loading
from sllm.control.wire.node_messages import HoldSpec
from sllm.control.wire.nodes import Nodes

_REPORTED_SECONDS: Final = 5.0
"""Within which a node that holds something has told of it."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A checkpoint, and the dtype in which it is served."""

    checkpoint: Checkpoint
    dtype: str
    identity: str
    """Of its source, as in ModelInfo."""
    engine: str = ""
    """That it is for. Empty: whichever a node has."""


@dataclass(frozen=True, slots=True)
class _UnderWay:
    """A prefetch that is not done."""

    call: Call[Prefetched]
    node_id: str
    job: Job[Loading, Prefetched]


class Prefetching:
    """Prefetches under way. Those that are done live on their nodes alone."""

    def __init__(
        self,
        durable: Durable,
        state: State,
        nodes: Nodes,
        inspector: Inspector,
        config: ControlConfig,
    ) -> None:
        self._durable = durable
        self._state = state
        self._nodes = nodes
        self._inspector = inspector
        self._timeout = config.start_timeout_seconds
        self._under_way: dict[str, _UnderWay] = {}
        """By the id of the call, or one that was made for it."""

    def end_streams(self) -> None:
        """Ends the streams of callers with ShuttingDown; the nodes go on."""
        for one in list(self._under_way.values()):
            one.job.task.cancel()

    async def prefetch(
        self, ask: PrefetchAsk, call: Call[Prefetched]
    ) -> AsyncGenerator[Placed | Loading | Prefetched]:
        """Brings a checkpoint up; yields where, then progress, then the end.

        Raises:
            errors.SllmError: Why not.
        """
        if (first := await self._durable.recall(call)) is not None:
            yield first
            return
        under_way = self._joined(call) or await self._begin(ask, call)
        yield Placed(under_way.node_id)
        async with aclosing(under_way.job.follow()) as steps:
            async for step in steps:
                yield step
        yield await under_way.job.result()

    def _joined(self, call: Call[Prefetched]) -> _UnderWay | None:
        """The same call, if it is under way."""
        found = self._under_way.get(call.request_id)
        if found:
            call.check_repeats(found.call.fingerprint)
        return found

    async def _begin(self, ask: PrefetchAsk, call: Call[Prefetched]) -> _UnderWay:
        self._check_source(ask)
        checkpoint = await self._checkpoint(ask)
        if joined := self._joined(call):  # it may have come meanwhile
            return joined
        node_id = self._choose(ask, checkpoint)
        tenant = tenant_of(ask.deployment) if ask.deployment else ask.tenant
        key = call.request_id or uuid.uuid4().hex
        owner = ask.deployment or (f"{tenant}:" if tenant else "")
        hold = HoldSpec(pins.prefetch_id(owner, key), ask.ttl)
        if tenant is not None:
            self._count(hold, Keep(tenant, checkpoint.checkpoint, ask.tier, node_id))
        job = Job(partial(self._work, ask, checkpoint, node_id, hold, call))
        job.task.add_done_callback(partial(self._ended, key, hold))
        under_way = self._under_way[key] = _UnderWay(call, node_id, job)
        return under_way

    def _count(self, hold: HoldSpec, keep: Keep) -> None:
        """Has what is to be held count as its tenant's, which may refuse it."""
        tier_bytes.check(self._state, keep)
        self._state.prefetching[hold.hold_id] = keep

    def _ended(self, key: str, hold: HoldSpec, task: asyncio.Task[Prefetched]) -> None:
        self._under_way.pop(key, None)
        forget = partial(self._state.prefetching.pop, hold.hold_id, None)
        if task.cancelled() or task.exception():
            forget()
        else:
            asyncio.get_running_loop().call_later(_REPORTED_SECONDS, forget)

    def _check_source(self, ask: PrefetchAsk) -> None:
        if ask.tenant is not None and not ask.deployment:
            limits = self._state.tenants.limits_of(ask.tenant)
            check_by_source(ask.tenant, limits, {Tier.SSD.name, ask.tier.name})

    async def _checkpoint(self, ask: PrefetchAsk) -> _Wanted:
        """What is to be brought up, as a deployment or a node's look at the source tells it."""
        if ask.deployment:
            deployment = self._state.deployment(ask.deployment)
            dtype, identity = deployment.spec.engine.dtype, deployment.model.identity
            need = self._state.needs[ask.deployment]
            return _Wanted(need.checkpoint, dtype, identity, need.engine)
        model = (await self._inspector.inspect(ask.source, EngineConfig(AUTO, ask.dtype))).model
        checkpoint = Checkpoint(ask.source, model.size_bytes, model.digest)
        return _Wanted(checkpoint, ask.dtype, model.identity)

    def _choose(self, ask: PrefetchAsk, wanted: _Wanted) -> str:
        """The node that was asked for, or else the one where an instance would start soonest."""
        if ask.node_id:
            view = self._state.working_node(ask.node_id)
            pins.check_room(view, ask.tier, wanted.checkpoint.size_bytes)
            return ask.node_id
        name = ask.deployment or ask.source
        need = Need(name, wanted.checkpoint, kv_bytes=0, least_kv_bytes=0, engine=wanted.engine)
        decision = placement.place(self._state.snapshot(), Demand(need, waiting=0))
        ranked = sorted(
            (math.inf if one.estimate is None else one.estimate, one.node_id)
            for one in decision.candidates
            if one.node_id not in self._state.draining and self._has_room(one.node_id, ask, wanted)
        )
        if not ranked:
            raise self._no_room(ask, wanted)
        return ranked[0][1]

    def _no_room(self, ask: PrefetchAsk, wanted: _Wanted) -> errors.SllmError:
        """Why there is no node to choose."""
        if not self._state.fleet.nodes.keys() - self._state.draining:
            return errors.NoNodes("no node takes new work; add one, or undrain one")
        capacities = [view.facts.tiers[ask.tier].capacity_bytes for view in self._views(ask.tier)]
        return errors.ModelTooLarge(
            f"the checkpoint takes {wanted.checkpoint.size_bytes} bytes, and the largest "
            f"{ask.tier.name} tier has {max(capacities, default=0)} in all"
        )

    def _views(self, tier: Tier) -> list[NodeView]:
        return [view for view in self._state.fleet.nodes.values() if tier in view.facts.tiers]

    def _has_room(self, node_id: str, ask: PrefetchAsk, wanted: _Wanted) -> bool:
        view = self._state.node(node_id)
        if math.isinf(view.engine_wait(wanted.engine)):
            return False
        try:
            pins.check_room(view, ask.tier, wanted.checkpoint.size_bytes)
        except errors.ModelTooLarge:
            return False
        return True

    async def _work(
        self,
        ask: PrefetchAsk,
        wanted: _Wanted,
        node_id: str,
        hold: HoldSpec,
        call: Call[Prefetched],
        tell: Callable[[Loading], None],
    ) -> Prefetched:
        digest = ""
        with self._state.deliveries.to(node_id, wanted.checkpoint) as givers:
            promotion = self._nodes.member(node_id).promote(
                wanted.checkpoint.source,
                wanted.dtype,
                ask.tier,
                self._timeout,
                hold,
                identity=wanted.identity,
                engine=wanted.engine,
                givers=givers,
            )
            async with aclosing(promotion) as steps:
                async for step in steps:
                    if isinstance(step, ModelInfo):
                        digest = step.digest
                    else:
                        tell(step)
        done = Prefetched(node_id, ask.tier, digest, time.time() + ask.ttl)
        await self._durable.run(self._durable.store.remember, call, done, time.time())
        return done
