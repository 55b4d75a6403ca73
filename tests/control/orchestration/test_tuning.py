"""Concurrency that follows a target, as a control plane has its instances keep to it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from serverlessllm.v1 import cluster_service_pb2 as cluster_pb

from sllm import errors
from sllm.clock import ManualClock
from sllm.control.orchestration.agenda import Agenda
from sllm.control.orchestration.tuning import Tuning
from sllm.control.requests.concurrency import LEAST_SAMPLES, LEAST_SECONDS
from sllm.control.state.state import State
from tests.control import shapes
from tests.control.clusters import Cluster
from tests.control.fake_node import FakeNode
from tests.support import assert_eventually

EACH = 0.01
"""Seconds of a token for each request that the instance has."""


@asynccontextmanager
async def callers(cluster: Cluster, count: int) -> AsyncIterator[None]:
    """So many, each with one request after the other."""

    async def calling() -> None:
        while True:
            await cluster.caller.complete(max_tokens=8)

    tasks = [asyncio.create_task(calling()) for _ in range(count)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_an_instance_has_fewer_requests_and_another_one_starts(
    cluster: Cluster, node: FakeNode
) -> None:
    node.script.token_seconds = EACH
    await cluster.caller.deploy(max_concurrency=8, target_time_per_token=0.04, max_replicas=2)

    async def is_tuned() -> bool:
        deployment = await cluster.caller.deployment("tiny")
        return 1 <= deployment.tuned.requests < 8 and deployment.ready_instances == 2

    async with callers(cluster, 8):
        await assert_eventually(is_tuned)
    explained = await cluster.caller.ask(
        "ExplainPlacement", cluster_pb.ExplainPlacementRequest(deployment="tiny")
    )
    assert explained.tuned.requests
    assert explained.tuned.time_per_token.ToMilliseconds() >= 1000 * EACH


async def test_without_a_target_any_more_an_instance_has_as_many_as_before(
    cluster: Cluster, node: FakeNode
) -> None:
    node.script.token_seconds = EACH
    await cluster.caller.deploy(max_concurrency=4, target_time_per_token=0.001)

    async def lowered() -> bool:
        return 0 < (await cluster.caller.deployment("tiny")).tuned.requests < 4

    async def free() -> bool:
        return not (await cluster.caller.deployment("tiny")).HasField("tuned")

    async with callers(cluster, 4):
        await assert_eventually(lowered)
    await cluster.caller.deploy(max_concurrency=4)  # nothing comes of it any more
    await assert_eventually(free)


def test_what_was_found_for_another_target_says_nothing() -> None:
    """However long it is until one request more would have been tried."""
    running, state, clock = shapes.instance("i", "m"), State(), ManualClock()
    state.slots.add("i", running.node_id, clock.now())
    tuning = Tuning(state, Agenda(state.changes, clock), clock)
    deployment = shapes.deployment("m")

    def look(target: float) -> int:
        scaling = replace(deployment.spec.scaling, target_time_per_token=target)
        state.set_deployment(replace(deployment, spec=replace(deployment.spec, scaling=scaling)))
        for _ in range(LEAST_SAMPLES):
            tuning.token(running, 0.1)
        clock.advance(LEAST_SECONDS)
        tuning.token(running, 0.1)
        limit = state.slots.uses["i"].limit
        assert limit is not None
        return limit.requests

    most = deployment.spec.engine.max_concurrency
    for _ in range(most):
        state.slots.take("i", "m", clock.now())
    assert look(0.01) < most
    assert look(1.0) == most


@pytest.mark.parametrize("seconds", [0.0, 61.0])
async def test_a_target_that_makes_no_sense_is_refused(
    cluster: Cluster, node: FakeNode, seconds: float
) -> None:
    with pytest.raises(errors.InvalidArgument, match="target_time_per_token"):
        await cluster.caller.deploy(target_time_per_token=seconds)
