"""What nodes find at the sources of deployments, and on which engine these can be served."""

import dataclasses
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, TypeVar

from sllm import errors
from sllm.control.cluster import revision, specs
from sllm.control.cluster.needs import need_of
from sllm.control.cluster.specs import Deployment, DeploymentSpec, ModelInfo
from sllm.control.placement import fitting
from sllm.control.state.state import State
from sllm.control.wire.deployments import template_trial
from sllm.control.wire.node_client import Node
from sllm.control.wire.node_messages import Inspected
from sllm.control.wire.nodes import Nodes

Answer = TypeVar("Answer")

_ASKED_NODES: Final = 4
"""How many nodes are asked, one after the other, until one of them sees the source."""


class Inspector:
    """Has nodes read sources, which no control plane does. Changes nothing."""

    def __init__(self, state: State, nodes: Nodes) -> None:
        self._state = state
        self._nodes = nodes

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

    async def inspect_model(self, spec: DeploymentSpec, present: Deployment | None) -> Inspected:
        """What a deployment's source is, on an engine on which it fits a node if there is one.

        One that copies weights needs more memory than one that uses them where they lie. A
        deployment that is there, `present`, is what it was if nobody can tell.

        Raises:
            errors.DeploymentExists: What is there has another source.
            errors.SllmError: Why it cannot be served.
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

    async def inspect_adapter(
        self, spec: DeploymentSpec, base: Deployment, present: Deployment | None
    ) -> ModelInfo:
        """What an adapter's source is. One that is `present` is what it was if nobody can tell.

        Raises:
            errors.SllmError: Why it cannot be served over its base.
        """
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

    async def try_template(self, spec: DeploymentSpec, model: ModelInfo) -> None:
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

    def _fits(self, spec: DeploymentSpec, found: Inspected) -> bool:
        present = self._state.deployments.get(spec.name)
        on_its_engine = on_engine(spec, found.engine)
        deployment = revision.deployed(present, on_its_engine, found.model, time.time())
        try:
            fitting.check_fits(self._state.snapshot(), need_of(deployment))
        except errors.ModelTooLarge:
            return False
        return True

    async def _look(self, spec: DeploymentSpec, present: Deployment | None) -> Inspected:
        """What the source is on the engine that is named, or preferred."""
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

    async def _of_any(
        self, engine: str, ask: Callable[[Node], Awaitable[Answer]], together: int = 1
    ) -> Answer:
        """The answer of the first node with an engine, and so many devices, that has one."""
        error: errors.SllmError = errors.NoNodes(
            "no node is connected that could inspect the source; start one and try again",
            retry_after=1.0,
        )
        for node in self._to_ask(engine, together)[:_ASKED_NODES]:
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


def on_engine(spec: DeploymentSpec, engine: str) -> DeploymentSpec:
    """The same deployment on another engine."""
    return dataclasses.replace(spec, engine=dataclasses.replace(spec.engine, engine=engine))
