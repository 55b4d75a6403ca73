"""Starts that end while they are under way, on a node that answers as it is told."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

from sllm.clock import MonotonicClock
from sllm.control.cluster.instances import Instance, InstanceState
from sllm.control.cluster.nodes import NodeFacts
from sllm.control.cluster.specs import Deployment
from sllm.control.config import ControlConfig
from sllm.control.orchestration.agenda import Agenda
from sllm.control.orchestration.launcher import Launcher
from sllm.control.orchestration.outcomes import Outcomes
from sllm.control.orchestration.residency import Residency
from sllm.control.state.state import State
from sllm.control.types.givers import NO_HELPERS, Helpers
from sllm.control.types.reports import Full, Report
from sllm.control.types.status import Loading
from sllm.control.wire.node_client import Node
from sllm.control.wire.node_messages import Ready, StopOrder
from sllm.control.wire.nodes import Nodes
from tests.control import shapes
from tests.support import assert_eventually


class Answering(Node):
    """A node whose instance is ready once it may be, wanted or not."""

    def __init__(self, facts: NodeFacts) -> None:
        super().__init__(facts)
        self.called, self.may_be_ready = asyncio.Event(), asyncio.Event()
        self.stopped: list[str] = []

    async def start_instance(
        self,
        deployment: Deployment,
        instance: Instance,
        timeout: float,
        helpers: Helpers = NO_HELPERS,
    ) -> AsyncGenerator[Loading | Ready, None]:
        """Ready, however late."""
        self.called.set()
        await self.may_be_ready.wait()
        ready = shapes.instance(instance.instance_id, deployment.name, state=InstanceState.READY)
        yield Ready(ready, (), None, deployment.model)

    async def stop_instance(self, instance_id: str, order: StopOrder) -> None:
        """Is told so."""
        self.stopped.append(instance_id)


async def test_a_start_that_is_withdrawn_as_it_becomes_ready_leaves_nothing() -> None:
    state, clock, config = State(), MonotonicClock(), ControlConfig(Path("unused"))
    deployment = shapes.deployment("tiny")
    state.set_deployment(deployment)
    state.fleet.apply(Report("n1", 1, Full(shapes.facts())), 1.0)
    nodes, node = Nodes(), Answering(shapes.facts())
    nodes._nodes["n1"] = node
    agenda = Agenda(state.changes, clock)
    outcomes = Outcomes(state, Residency(1.0, 30.0), clock)
    launcher = Launcher(state, nodes, outcomes, agenda, clock, config)
    instance = shapes.instance("i1", "tiny", state=InstanceState.STARTING)

    launcher.begin(deployment, instance)
    await asyncio.wait_for(node.called.wait(), 60.0)
    node.may_be_ready.set()  # what it answers is on its way
    launcher.end(instance)
    await assert_eventually(lambda: not state.starts)
    await assert_eventually(lambda: node.stopped)
    assert node.stopped == ["i1"]
    assert not state.slots.uses
    assert not state.records
    await launcher.close()
    await nodes.close()
