"""Deployments as callers change them: checked, inspected by a node, stored, then in force."""

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, TypeVar

import structlog

from sllm import errors
from sllm.control.cluster import adapters, revision, specs, validation
from sllm.control.cluster.needs import need_of
from sllm.control.cluster.specs import Deployment, DeploymentSpec, ModelInfo
from sllm.control.placement import fitting
from sllm.control.state import tier_bytes
from sllm.control.state.durable import Durable
from sllm.control.state.state import State
from sllm.control.state.statuses import status_of
from sllm.control.tenants.limits import check_replicas
from sllm.control.tenants.names import tenant_of
from sllm.control.types.calls import Call, Done
from sllm.control.types.status import DeploymentStatus
from sllm.control.wire.deployments import template_trial
from sllm.control.wire.node_client import Node
from sllm.control.wire.node_messages import Inspected
from sllm.control.wire.nodes import Nodes

log = structlog.get_logger()

Answer = TypeVar("Answer")

_INSPECTED_NODES: Final = 4
"""How many nodes are asked, one after the other, until one of them sees the source."""


class Catalog:
    """The deployments, in memory and in the store, which are changed together."""

    def __init__(self, durable: Durable, state: State, nodes: Nodes) -> None:
        self._durable = durable
        self._state = state
        self._nodes = nodes
        self._changing = asyncio.Lock()

    async def load(self) -> None:
        """Takes in what was stored before a restart."""
        for deployment in await self._durable.run(self._durable.store.deployments):
            self._state.set_deployment(deployment)

    async def deploy(self, spec: DeploymentSpec, call: Call[DeploymentStatus]) -> DeploymentStatus:
        """Creates a deployment, or changes the policy of one that is there.

        Returns:
            How it is doing; for a repeated call, how it was doing at first.

        Raises:
            errors.SllmError: Why not; then nothing has changed.
        """
        validation.validate(spec)
        if (first := await self._durable.recall(call)) is not None:
            return first
        if spec.base:
            return await self._deploy_adapter(spec, call)
        if spec.engine.tensor_parallel > 1:
            spec = _on(spec, specs.VLLM)  # the one engine that has several devices run a model
        if spec.engine.expert_memory is not None:
            spec = _on(spec, specs.TRANSFORMERS)  # the one engine whose experts may stay on SSD
        # Inspecting may take a minute, and nobody is locked out meanwhile. What is there is looked
        # at again afterwards.
        present = self._state.deployments.get(spec.name)
        found = await self._look_for_room(spec, present)
        spec = _on(spec, found.engine)
        validation.validate(spec)
        await self._try_template(spec, found.model)
        while True:
            looked_at = await self._check_adapters(self._revised(spec, found.model))
            async with self._changing:
                if not self._adapters_to_look_at(spec) <= looked_at:
                    continue  # one has come meanwhile
                deployment = self._revised(spec, found.model)
                if before := self._state.deployments.get(spec.name):
                    there = self._state.adapters_of(spec.name)
                    adapters.check_still_fits(before, deployment, there)
                return await self._put(deployment, call)

    def _adapters_to_look_at(self, spec: DeploymentSpec) -> frozenset[str]:
        """Names of the adapters over a base that is to run on another engine."""
        present = self._state.deployments.get(spec.name)
        if present is None or present.spec.engine.engine == spec.engine.engine:
            return frozenset()
        return frozenset(one.name for one in self._state.adapters_of(spec.name))

    async def _check_adapters(self, base: Deployment) -> frozenset[str]:
        """Has nodes hold adapters against what their base is to become: names of those that fit.

        Raises:
            errors.AdaptersLeft: One does not.
            errors.Unavailable: Nobody can tell.
        """
        names = self._adapters_to_look_at(base.spec)
        for name in sorted(names):
            one = self._state.deployments.get(name)
            if one is None:
                continue  # it was deleted meanwhile
            try:
                await self._look_at_adapter(one.spec, base, None)
            except errors.Unavailable:
                raise
            except errors.SllmError as error:
                raise adapters.does_not_fit(base, name, error) from error
        return names

    async def _deploy_adapter(
        self, spec: DeploymentSpec, call: Call[DeploymentStatus]
    ) -> DeploymentStatus:
        """The same of an adapter, which a node holds against its base."""
        base, present = self._base_of(spec), self._state.deployments.get(spec.name)
        if present:
            revision.check_source(present, spec)
        found = await self._look_at_adapter(spec, base, present)
        rendered = dataclasses.replace(base.spec, chat_template=spec.chat_template)
        await self._try_template(rendered, base.model)
        async with self._changing:
            looked_at, base = base, self._base_of(spec)  # looking may take a minute
            held_against = found.adapter.base_identity if found.adapter else ""
            if held_against != base.model.identity:
                raise errors.SourceChanged(
                    f"{base.name} has become another model meanwhile; deploy {spec.name} again"
                )
            if looked_at.spec.engine.engine != base.spec.engine.engine:
                raise errors.SourceChanged(
                    f"{base.name} has come to run on {base.spec.engine.engine} meanwhile; deploy "
                    f"{spec.name} again"
                )
            model = adapters.adapted(base, found)
            return await self._put(self._revised(spec, model), call)

    def _base_of(self, spec: DeploymentSpec) -> Deployment:
        adapters.validate_adapter(spec)
        base = self._state.deployment(spec.base)
        adapters.check_base(spec, base)
        return base

    async def _look_at_adapter(
        self, spec: DeploymentSpec, base: Deployment, present: Deployment | None
    ) -> ModelInfo:
        """What the source is now. One that is there is what it was if nobody can tell."""
        engine = base.spec.engine.engine
        try:
            found = await self._of_any(
                engine, lambda node: node.inspect_adapter(spec.source, spec.engine.dtype, base)
            )
        except (errors.SourceNotFound, errors.SourceForbidden, errors.Unavailable):
            if present is None:
                raise
            return present.model
        return found.model

    async def _put(self, deployment: Deployment, call: Call[DeploymentStatus]) -> DeploymentStatus:
        """Stores a deployment, which is in force from then on, unless the call was repeated."""
        fitting.check_fits(self._state.snapshot(), need_of(deployment))
        self._check_replicas(deployment)
        tier_bytes.check_deployment(self._state, deployment)
        status = self._status_of(deployment)
        put = self._durable.store.put
        answer = await self._durable.run(put, deployment, call, status, time.time())
        if answer is status:  # else the same call has come twice at once, and is in force
            self._state.set_deployment(deployment)
        return answer

    def _check_replicas(self, deployment: Deployment) -> None:
        tenant = tenant_of(deployment.name)
        kept = {**self._state.kept_replicas, deployment.name: deployment.spec.scaling.min_replicas}
        its = {name: least for name, least in kept.items() if tenant_of(name) == tenant}
        check_replicas(tenant, self._state.tenants.limits_of(tenant), its)

    async def delete(self, name: str, call: Call[Done]) -> bool:
        """Removes a deployment; says whether it did, rather than this being a repeated call.

        Raises:
            errors.DeploymentNotFound: There is none of this name.
            errors.AdaptersLeft: There are adapters over it.
        """
        async with self._changing:
            if await self._durable.recall(call) is not None:
                return False
            self._state.deployment(name)
            adapters.check_none_left(name, self._state.adapters_of(name))
            await self._durable.run(self._durable.store.delete, name, call, time.time())
            self._state.drop_deployment(name)
        return True

    async def learn_model(self, name: str, model: ModelInfo) -> None:
        """Takes in what a node has found out about a deployment's model, for good if it can."""
        async with self._changing:
            if not self._state.learn_model(name, model):
                return
            try:
                known = self._state.deployments[name].model  # with what `model` leaves open
                await self._durable.run(self._durable.store.set_model, name, known)
            except errors.StateUnavailable as error:  # it is found out again after a restart
                log.warning("control.model_not_stored", deployment=name, problem=error.message)

    def _revised(self, spec: DeploymentSpec, model: ModelInfo) -> Deployment:
        present = self._state.deployments.get(spec.name)
        if present:
            return revision.revise(present, spec, model)
        return Deployment(spec, model, created_at=time.time())

    def _status_of(self, deployment: Deployment) -> DeploymentStatus:
        """How a deployment is doing, as it is told once it is stored."""
        if deployment.name in self._state.deployments:
            present = status_of(self._state, deployment.name)
            return dataclasses.replace(present, deployment=self._state.shown(deployment))
        return DeploymentStatus(self._state.shown(deployment), self._state.prepared(deployment))

    async def _look_for_room(self, spec: DeploymentSpec, present: Deployment | None) -> Inspected:
        """As `_look`; what fits no node on the engine that is preferred may fit on another.

        An engine that copies weights needs more memory than one that uses them where they lie.
        """
        found = await self._look(spec, present)
        if spec.engine.engine != specs.AUTO or self._fits(spec, found):
            return found
        for engine in (one for one in specs.ENGINES if one != found.engine):
            with suppress(errors.SllmError):
                other = await self._inspect_on(spec, engine)
                if self._fits(spec, other):
                    return other
        return found  # the refusal is of the engine that is preferred

    def _fits(self, spec: DeploymentSpec, found: Inspected) -> bool:
        need = need_of(self._revised(_on(spec, found.engine), found.model))
        try:
            fitting.check_fits(self._state.snapshot(), need)
        except errors.ModelTooLarge:
            return False
        return True

    async def _look(self, spec: DeploymentSpec, present: Deployment | None) -> Inspected:
        """What the source is now. A deployment that is there is what it was if nobody can tell."""
        if present is None:
            return await self._inspect_on(spec, spec.engine.engine)
        revision.check_source(present, spec)
        try:
            return await self._look_again(spec, present.spec.engine.engine)
        except (errors.SourceNotFound, errors.SourceForbidden, errors.Unavailable):
            before, after = present.spec.engine, spec.engine
            if after.tensor_parallel != before.tensor_parallel:
                raise  # whether it can be divided so, and what a part takes, nobody has said
            if after.expert_memory not in (None, before.expert_memory):
                raise  # nor whether experts can be read so
            asked = spec.engine.engine
            engine = present.spec.engine.engine if asked == specs.AUTO else asked
            return Inspected(present.model.without_private, engine)

    async def _look_again(self, spec: DeploymentSpec, engine: str) -> Inspected:
        """The same of a deployment that is there: it stays on its engine, unless another is named.

        That is chosen anew where no node has it any more, or the source has become one that it
        does not run.
        """
        asked = spec.engine.engine
        if asked == specs.AUTO:
            with suppress(errors.EngineUnavailable, errors.UnsupportedModel):
                return await self._inspect_on(spec, engine)
        return await self._inspect_on(spec, asked)

    async def _inspect_on(self, spec: DeploymentSpec, engine: str) -> Inspected:
        return await self.inspect(spec.source, dataclasses.replace(spec.engine, engine=engine))

    async def inspect(self, source: str, config: specs.EngineConfig) -> Inspected:
        """Has a node read a source; a directory need not be on every one.

        Args:
            source: its URL.
            config: how it is to be run; nodes that have the engine are asked.

        Raises:
            errors.EngineUnavailable: No node has the engine.
            errors.SllmError: Why it cannot be served.
        """
        return await self._of_any(
            config.engine, lambda node: node.inspect(source, config), config.tensor_parallel
        )

    async def _try_template(self, spec: DeploymentSpec, model: ModelInfo) -> None:
        """Makes sure that a node can read a template; what it refuses to render is its own affair.

        Raises:
            errors.InvalidChatTemplate: It is no Jinja.
        """
        if not spec.chat_template:
            return
        trial = template_trial(spec, model)
        with suppress(errors.InvalidPrompt):
            await self._of_any(
                spec.engine.engine, lambda node: node.ask(node.models.RenderChat, trial)
            )

    async def _of_any(
        self, engine: str, ask: Callable[[Node], Awaitable[Answer]], together: int = 1
    ) -> Answer:
        """The answer of the first node with an engine, and so many devices, that has one."""
        error: errors.SllmError = errors.NoNodes(
            "no node is connected that could inspect the source; start one and try again",
            retry_after=1.0,
        )
        for node in self._to_ask(engine, together)[:_INSPECTED_NODES]:
            try:
                return await ask(node)
            except (errors.SourceNotFound, errors.Unavailable) as failure:
                error = failure
        raise error

    def _to_ask(self, engine: str, together: int) -> list[Node]:
        """The nodes that have an engine, and so many devices for an instance if any of them has."""
        nodes, views = self.with_engine(engine), self._state.fleet.nodes
        able = [one for one in nodes if views[one.node_id].facts.max_tensor_parallel >= together]
        return able or nodes

    def with_engine(self, engine: str) -> list[Node]:
        """The nodes that have an engine; for AUTO all, those first that prefer what we do.

        Raises:
            errors.EngineUnavailable: There are nodes, and none has it.
        """
        views = self._state.fleet.nodes
        had = {key: tuple(views[key].facts.engines) for key in self._nodes.by_id if key in views}
        if engine == specs.AUTO:
            # The order of nodes with the same engines stays.
            keys = sorted(had, key=lambda key: had[key][:1] != specs.ENGINES[:1])
        else:
            keys = [key for key in had if engine in had[key]]
        if had and not keys:
            there = ", ".join(sorted({one for names in had.values() for one in names}))
            raise errors.EngineUnavailable(
                f"no node has the engine {engine!r}, they have {there}: start a node that has it "
                f"(sllm node --engines {engine}), or deploy with engine {specs.AUTO!r}"
            )
        return [self._nodes.by_id[key] for key in keys]


def _on(spec: DeploymentSpec, engine: str) -> DeploymentSpec:
    return dataclasses.replace(spec, engine=dataclasses.replace(spec.engine, engine=engine))
