"""WatchDeployment: how a deployment is doing, whenever that changes."""

import asyncio

from sllm.control.cluster.specs import DeploymentState
from sllm.control.operations.deployment_watch import DeploymentWatch
from sllm.control.state.state import State
from tests.control.shapes import deployment

SECONDS = 20.0


async def test_a_watcher_misses_no_change_while_it_is_told_of_another() -> None:
    state = State()
    state.set_deployment(deployment("tiny"))
    watch = DeploymentWatch(state).follow("tiny")
    async with asyncio.timeout(SECONDS):
        told = await anext(watch)
        assert told.state is DeploymentState.PREPARING

        state.unprepared["tiny"] = "nowhere to be found"
        state.changes.notify("tiny")  # nobody waits at this moment

        assert (await anext(watch)).state is DeploymentState.FAILED
