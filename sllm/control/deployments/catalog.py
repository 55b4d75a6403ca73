"""Deployments as callers change them: checked, inspected by a node, stored, then in force."""

import asyncio
import dataclasses
import time

import structlog

from sllm import errors
from sllm.control.cluster import adapters, revision, specs, validation
from sllm.control.cluster.needs import need_of
from sllm.control.cluster.specs import Deployment, DeploymentSpec, ModelInfo
from sllm.control.deployments.inspection import Inspector, on_engine
from sllm.control.placement import fitting
from sllm.control.state import tier_bytes
from sllm.control.state.durable import Durable
from sllm.control.state.state import State
from sllm.control.state.statuses import kept_because, status_of
from sllm.control.tenants.limits import check_replicas
from sllm.control.tenants.names import tenant_of
from sllm.control.types.calls import Call, Done
from sllm.control.types.status import DeploymentStatus

log = structlog.get_logger()


class Catalog:
    """The deployments, in memory and in the store, which are changed together."""

    def __init__(self, durable: Durable, state: State, inspector: Inspector) -> None:
        self._durable = durable
        self._state = state
        self._inspector = inspector
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
        return await self._deploy_model(_on_only_engine(spec), call)

    async def _deploy_model(
        self, spec: DeploymentSpec, call: Call[DeploymentStatus]
    ) -> DeploymentStatus:
        # Inspecting may take a minute, and nobody is locked out meanwhile. What is there is looked
        # at again afterwards.
        present = self._state.deployments.get(spec.name)
        found = await self._inspector.inspect_model(spec, present)
        spec = on_engine(spec, found.engine)
        validation.validate(spec)
        await self._inspector.try_template(spec, found.model)
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
                await self._inspector.inspect_adapter(one.spec, base, None)
            except errors.Unavailable:
                raise
            except errors.SllmError as error:
                raise adapters.does_not_fit(base, name, error) from error
        return names

    async def _deploy_adapter(
        self, spec: DeploymentSpec, call: Call[DeploymentStatus]
    ) -> DeploymentStatus:
        """Deploys an adapter, which a node holds against its base."""
        base, present = self._base_of(spec), self._state.deployments.get(spec.name)
        if present:
            revision.check_source(present, spec)
        found = await self._inspector.inspect_adapter(spec, base, present)
        rendered = dataclasses.replace(base.spec, chat_template=spec.chat_template)
        await self._inspector.try_template(rendered, base.model)
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

    async def _put(self, deployment: Deployment, call: Call[DeploymentStatus]) -> DeploymentStatus:
        """Stores a deployment, which is in force from then on, unless the call was repeated."""
        fitting.check_fits(self._state.snapshot(), need_of(deployment))
        self._check_replicas(deployment)
        tier_bytes.check_deployment(self._state, deployment)
        need, least = need_of(deployment), deployment.spec.scaling.min_replicas
        beyond = fitting.check_replicas(self._state.snapshot(), need, least)
        status = self._status_of(deployment, beyond)
        put = self._durable.store.put
        answer = await self._durable.run(put, deployment, call, status, time.time())
        if answer is status:  # else the same call has come twice at once, and is in force
            self._state.set_deployment(deployment)
            self._state.beyond_nodes[deployment.name] = beyond
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
        return revision.deployed(present, spec, model, time.time())

    def _status_of(self, deployment: Deployment, beyond: str) -> DeploymentStatus:
        """How a deployment is doing, as it is told once it is stored.

        `beyond`: why there is no room for what min_replicas is to keep; empty if there is.
        """
        state, shown = self._state, self._state.shown(deployment)
        if deployment.name not in state.deployments:
            return DeploymentStatus(shown, state.prepared(deployment), message=beyond)
        present = status_of(state, deployment.name)
        failed = present.state is specs.DeploymentState.FAILED
        told = present.message if failed else beyond or kept_because(state, deployment.name)
        return dataclasses.replace(present, deployment=shown, message=told)


def _on_only_engine(spec: DeploymentSpec) -> DeploymentSpec:
    """Names the engine, where one alone can run what is asked for."""
    if spec.engine.tensor_parallel > 1:
        return on_engine(spec, specs.VLLM)
    if spec.engine.expert_memory is not None:
        return on_engine(spec, specs.TRANSFORMERS)
    return spec
