"""Keep times as a control plane learns them, acts on them and tells of them."""

import dataclasses
from functools import reduce

import pytest
from serverlessllm.v1 import cluster_service_pb2 as cluster_pb
from serverlessllm.v1 import node_service_pb2 as node_pb

from sllm.control.cluster.nodes import NodeMemory
from sllm.control.cluster.tiers import Tier, TierUsage
from sllm.control.deployments.layers import layers_of
from sllm.control.requests.keep_times import keep_times
from sllm.control.requests.pauses import EDGES, Pauses
from tests.control import shapes
from tests.control.clusters import Cluster
from tests.control.fake_node import FakeNode
from tests.support import assert_eventually

LONG = 3600.0
MANY = 24
"""Requests whose pauses suffice."""


def stops(node: FakeNode) -> list[node_pb.StopInstanceRequest]:
    return [one for one in node.calls if isinstance(one, node_pb.StopInstanceRequest)]


async def test_an_instance_whose_requests_follow_closely_ends_soon_after_the_last(
    cluster: Cluster, node: FakeNode
) -> None:
    deployed = await cluster.caller.deploy(keep_alive=LONG, learn_keep_alive=True)
    assert deployed.scaling.learn_keep_alive
    for _ in range(MANY):
        await cluster.caller.complete()
    await cluster.wait_for_instances(0)
    (stop,) = stops(node)
    assert stop.HasField("keep_weights")
    learned = (await cluster.caller.deployment("tiny")).learned
    assert learned.instance.ToTimedelta().total_seconds() < LONG / 100
    explained = await cluster.caller.ask(
        "ExplainPlacement", cluster_pb.ExplainPlacementRequest(deployment="tiny")
    )
    assert explained.learned == learned


async def test_until_enough_is_known_the_policy_holds(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy(keep_alive=LONG, learn_keep_alive=True)
    for _ in range(5):
        await cluster.caller.complete()
    assert not (await cluster.caller.deployment("tiny")).HasField("learned")
    assert not stops(node)


async def test_what_is_not_to_learn_does_not(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy(keep_alive=LONG)
    for _ in range(MANY):
        await cluster.caller.complete()
    assert not (await cluster.caller.deployment("tiny")).HasField("learned")
    assert not stops(node)


async def test_a_policy_that_learns_no_more_holds_at_once(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy(keep_alive=LONG, learn_keep_alive=True, min_replicas=1)
    for _ in range(MANY):
        await cluster.caller.complete()

    async def has_learned() -> bool:
        return (await cluster.caller.deployment("tiny")).HasField("learned")

    async def forgot() -> bool:
        return not await has_learned()

    await assert_eventually(has_learned)
    await cluster.caller.deploy(keep_alive=LONG, min_replicas=1)
    await assert_eventually(forgot)


# --- layers -------------------------------------------------------------------------------------

FULL = {Tier.SSD: TierUsage(10**9, 0), Tier.DRAM: TierUsage(1000, 1000)}


def test_an_instance_costs_its_share_and_saves_its_start() -> None:
    running = shapes.instance("i", "m", kv=100, digest="d")
    there = shapes.copy("d", Tier.DRAM, leased=True)
    view = shapes.view(copies=[there], instances=[running])
    found = layers_of(view, running, shapes.need(), shapes.typical_of([view]), 60.0, 5.0)
    assert found is not None
    instance, weights = found
    assert instance.rent == pytest.approx(0.1 / 60)  # a tenth of the KV budget
    assert instance.saving == pytest.approx(1.0)  # its init
    assert instance.longest == 5.0
    assert weights.rent == pytest.approx(0.1 / 60)
    assert weights.saving == 0.0  # it is read while the worker starts


def test_what_an_instance_takes_most_of_sets_the_price_however_much_is_free() -> None:
    running = dataclasses.replace(shapes.instance("i", "m", kv=100), own_bytes=80)
    facts = dataclasses.replace(
        shapes.facts(), memory=NodeMemory(200, 100, 80, instance_bytes=10), tiers=FULL
    )
    view = shapes.view(facts, instances=[running], copies=[shapes.copy("d", Tier.DRAM)])
    found = layers_of(view, running, shapes.need(), shapes.typical_of([view]), 60.0, 5.0)
    assert found is not None
    assert found[0].rent == pytest.approx(0.8 / 60)
    assert found[1].rent == pytest.approx(0.1 / 60)


def test_weights_on_devices_count_in_whatever_form() -> None:
    running = shapes.instance("i", "m", kv=100, digest="d")
    facts = shapes.facts()
    facts = dataclasses.replace(facts, tiers={**facts.tiers, Tier.DEVICE: TierUsage(200, 100)})
    made = dataclasses.replace(
        shapes.copy("ready", Tier.DEVICE, leased=True), made_of="d", made_for="vllm"
    )
    view = shapes.view(facts, copies=[made], instances=[running])
    found = layers_of(view, running, shapes.need(), shapes.typical_of([view]), 60.0, 5.0)
    assert found is not None
    assert found[0].rent == pytest.approx(0.5 / 60)


def test_where_nobody_knows_what_a_start_takes_nothing_is_concluded() -> None:
    running = shapes.instance("i", "m")
    view = shapes.view(shapes.facts(init=None), instances=[running])
    assert layers_of(view, running, shapes.need(), shapes.typical_of([view]), 60.0, 5.0) is None


def test_where_nobody_knows_how_long_a_read_takes_weights_are_not_called_worthless() -> None:
    """As where checkpoints came from their sources into memory, and nothing was read from SSD."""
    running = shapes.instance("i", "m", kv=100, digest="d")
    there = shapes.copy("d", Tier.DRAM, leased=True)
    unread = {key: link for key, link in shapes.LINKS.items() if key != (Tier.SSD, Tier.DRAM)}
    view = shapes.view(shapes.facts(links=unread), copies=[there], instances=[running])
    found = layers_of(view, running, shapes.need(), shapes.typical_of([view]), 60.0, 5.0)
    assert found is not None
    pauses = reduce(Pauses.plus, [1000.0] * MANY, Pauses())
    instance, weights = keep_times(pauses, found)
    assert instance < 5.0
    assert weights == EDGES[-1]
