"""What nodes keep of prompts: where requests are served for it, and what is told of that."""

from dataclasses import replace

import pytest
from serverlessllm.v1 import inference_service_pb2 as inference_pb

from sllm.control.cluster.nodes import NodeView
from sllm.control.cluster.tiers import Tier
from sllm.control.placement.decisions import Demand, Start
from sllm.control.placement.explain import explain
from sllm.control.placement.placement import place
from tests.control import shapes
from tests.control.clusters import Cluster
from tests.control.fake_node import FakeNode
from tests.control.placement.test_distance import FROM_EDGE, node

DEMAND = Demand(shapes.need(), kept={"b": 0.4})


def start_of(*views: NodeView, demand: Demand = DEMAND) -> Start:
    action = place(shapes.snapshot(*views), demand).action
    assert isinstance(action, Start)
    return action


def test_of_equals_the_one_that_keeps_the_prompt_is_taken() -> None:
    views = node("a", "", Tier.DRAM), node("b", "", Tier.DRAM)
    start = start_of(*views)
    assert (start.node_id, start.distance) == ("b", -0.4)
    assert start.estimate == pytest.approx(1.0), "what a start is held against"
    assert start_of(*views, demand=Demand(shapes.need())).node_id == "a"


def test_one_that_is_later_by_more_than_it_saves_is_not() -> None:
    """From SSD it takes a tenth of a second longer, and from the source a whole one."""
    assert start_of(node("a", "", Tier.DRAM), node("b", "", Tier.SSD)).node_id == "b"
    assert start_of(node("a", "", Tier.DRAM), node("b", "")).node_id == "a"


def test_the_way_there_counts_beside_it() -> None:
    views = node("a", "edge", Tier.DRAM), node("b", "cloud", Tier.DRAM)
    demand = replace(DEMAND, origins=FROM_EDGE)
    assert start_of(*views, demand=demand).node_id == "a"
    start = start_of(*views, demand=replace(demand, kept={"b": 0.6}))
    assert start.node_id == "b"
    assert start.distance == pytest.approx(-0.1)


def test_it_is_told_what_is_saved() -> None:
    found = explain(place(shapes.snapshot(node("a", ""), node("b", "")), DEMAND))
    kept, other = found.candidates
    assert kept.parts
    assert (kept.node_id, kept.parts.saved) == ("b", 0.4)
    assert kept.verdict == (
        "chosen: it has to fetch the weights from their source, and keeps 400 ms of computing "
        "the prompt"
    )
    assert (
        other.verdict == "400 ms later than b: what it keeps of the prompt saves 0 ms, not 400 ms"
    )
    assert kept.estimate == pytest.approx(1.6)


# --- with a control plane -----------------------------------------------------------------------


def last_call(node: FakeNode) -> inference_pb.GenerateRequest:
    """The request that a node has had last."""
    return next(
        call for call in reversed(node.calls) if isinstance(call, inference_pb.GenerateRequest)
    )


async def test_requests_go_where_their_prompt_is_kept_and_others_are_told_where_that_is(
    cluster: Cluster,
) -> None:
    for node_id in ("n1", "n2"):
        await cluster.add_node(node_id)
    await cluster.caller.deploy(min_replicas=2, max_replicas=2, max_concurrency=1)
    await cluster.wait_for_instances(2)
    prompt = "All happy families are alike. " * 40
    first = await cluster.caller.complete(text=prompt)
    other = cluster.nodes[first.receipt.node_id]
    (keeper,) = (node for node in cluster.nodes.values() if node is not other)
    names = last_call(other).prefixes.names
    assert len(names) > 3
    keeper.tell_kept({names[2]: 0.5})

    async def goes_on() -> str:
        stream = await cluster.caller.complete(text=prompt + "But all unhappy ones are not.")
        return stream.receipt.node_id

    while await goes_on() != keeper.node_id:  # the report is on its way
        pass
    assert not last_call(keeper).prefixes.HasField("keeper")
    keeper.script.before_finish.shut()
    busy = await cluster.caller.generate(text=prompt).until("tokens")
    assert await goes_on() == other.node_id, "there alone it finds a slot"
    told = last_call(other).prefixes.keeper
    assert (told.node_id, told.address) == (keeper.node_id, keeper.address)
    keeper.script.before_finish.open()
    await busy.end()


async def test_what_a_client_says_of_its_prompt_is_not_heard(cluster: Cluster) -> None:
    await cluster.add_node("n1")
    await cluster.caller.deploy()
    said = inference_pb.PromptPrefixes(names=[1, 2, 3], size_bytes=9)
    await cluster.caller.complete(text="short", prefixes=said)
    assert last_call(cluster.nodes["n1"]).prefixes == inference_pb.PromptPrefixes(size_bytes=5)
