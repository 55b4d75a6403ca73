"""Requests over real gRPC: a real control plane, and nodes that are scripted."""

import asyncio

import pytest
from serverlessllm.v1 import types_pb2 as pb

from sllm import errors
from sllm.control.requests.service_times import ServiceTimes
from sllm.control.state.fleet import Fleet
from sllm.control.state.migration_cost import MigrationCosts
from tests.control.clusters import Cluster
from tests.control.fake_node import FakeNode
from tests.support import assert_eventually


async def test_a_cold_request_tells_its_story_in_order(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy()
    stream = await cluster.caller.complete()

    assert stream.kinds[0] == "queued"
    assert stream.kinds[-1] == "finished"
    assert "loading" in stream.kinds
    order = list(dict.fromkeys(stream.kinds))
    assert order == ["queued", "loading", "started", "tokens", "finished"]
    assert [event.sequence for event in stream.events] == list(range(len(stream.events)))
    assert stream.text == "0 1 2 "


async def test_the_receipt_of_a_cold_request_is_whole(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy()
    receipt = (await cluster.caller.complete()).receipt

    assert receipt.cold
    assert receipt.from_tier == pb.TIER_SSD
    assert receipt.HasField("estimated_start")
    assert receipt.node_id == "n1"
    assert receipt.instance_id in node.instances
    kinds = [phase.kind for phase in receipt.phases]
    assert set(kinds) == {
        pb.PHASE_KIND_QUEUED,
        pb.PHASE_KIND_PLACED,
        pb.PHASE_KIND_READ_SSD,
        pb.PHASE_KIND_PREFILL,
    }
    starts = [phase.start.ToNanoseconds() for phase in receipt.phases]
    assert starts == sorted(starts)
    assert starts[0] == 0
    assert receipt.time_to_first_token.ToNanoseconds() > 0


@pytest.mark.parametrize("arriving", [True, False])
async def test_what_begins_before_its_weights_are_there_teaches_nothing(
    cluster: Cluster, node: FakeNode, monkeypatch: pytest.MonkeyPatch, arriving: bool
) -> None:
    """How long such starts and prefills take says nothing of others."""
    learned: list[str] = []
    for place, name in (
        (Fleet, "start_ended"),
        (MigrationCosts, "observe_prefill"),
        (ServiceTimes, "served"),
    ):
        monkeypatch.setattr(place, name, lambda *_, name=name: learned.append(name))
    node.script.weights_arriving = arriving
    if arriving:
        node.script.phases = [pb.Phase(kind=pb.PHASE_KIND_READ_SSD, size_bytes=5)]
    await cluster.caller.deploy()
    receipt = (await cluster.caller.complete()).receipt
    assert set(learned) == (set() if arriving else {"start_ended", "observe_prefill", "served"})
    reads = [one for one in receipt.phases if one.kind == pb.PHASE_KIND_READ_SSD]
    assert sum(one.size_bytes for one in reads) == (15 if arriving else 10)


async def test_a_warm_request_reuses_the_instance(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy()
    await cluster.caller.complete()
    stream = await cluster.caller.complete()

    assert list(dict.fromkeys(stream.kinds)) == ["queued", "started", "tokens", "finished"]
    assert not stream.receipt.cold
    assert not stream.receipt.HasField("estimated_start")
    assert node.count("StartInstance") == 1


async def test_after_keep_alive_the_instance_ends(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy(keep_alive=0.2)
    await cluster.caller.complete()
    await cluster.wait_for_instances(0)
    again = await cluster.caller.complete()

    assert again.receipt.cold
    assert node.count("StartInstance") == 2


async def test_without_keep_alive_the_instance_ends_with_its_last_request(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.deploy(keep_alive=0.0)
    node.script.before_finish.shut()
    first = await cluster.caller.generate().until("tokens")
    second = await cluster.caller.generate().until("tokens")
    node.script.before_finish.open()
    await first.end()
    await second.end()

    await assert_eventually(lambda: not node.instances)
    assert node.count("StartInstance") == 1


async def test_requests_beyond_the_slots_wait_their_turn(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy(max_concurrency=1)
    await cluster.caller.complete(request_id="warm")
    node.script.before_finish.shut()
    first = await cluster.caller.generate(request_id="r0").until("tokens")
    # One after the other: calls that begin together have no order.
    begin = cluster.caller.generate
    streams = [first, *[await begin(request_id=f"r{one}").until("queued") for one in range(1, 4)]]
    assert (await cluster.caller.deployment("tiny")).queued_requests == 3
    node.script.before_finish.open()
    for stream in streams:
        await stream.end()

    assert node.served() == ["warm", "r0", "r1", "r2", "r3"]
    assert [stream.events[0].queued.position for stream in streams[1:]] == [0, 1, 2]


async def test_dropping_the_call_stops_the_node(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy()
    node.script.before_finish.shut()
    stream = await cluster.caller.generate(request_id="mine").until("tokens")
    stream.call.cancel()

    await assert_eventually(lambda: node.cancelled == ["mine"])
    (instance,) = node.instances.values()
    assert instance.running_requests == 0


async def test_dropping_a_queued_call_takes_it_out_and_lets_the_load_end(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.deploy()
    node.script.before_ready.shut()
    stream = await cluster.caller.generate().until("loading")
    stream.call.cancel()

    async def empty() -> bool:
        return (await cluster.caller.deployment("tiny")).queued_requests == 0

    await assert_eventually(empty)
    node.script.before_ready.open()
    await cluster.wait_for_instances(1)
    assert node.count("Generate") == 0


async def test_a_request_is_cancelled_by_its_id(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy()
    node.script.before_finish.shut()
    running = await cluster.caller.generate(request_id="running").until("tokens")
    await cluster.caller.cancel("running")
    with pytest.raises(errors.Cancelled):
        await running.end()
    await assert_eventually(lambda: node.cancelled == ["running"])
    with pytest.raises(errors.RequestNotFound):
        await cluster.caller.cancel("running")


async def test_a_queued_request_is_cancelled_by_its_id(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy()
    node.script.before_ready.shut()
    queued = await cluster.caller.generate(request_id="queued").until("queued")
    await cluster.caller.cancel("queued")
    with pytest.raises(errors.Cancelled):
        await queued.end()
    node.script.before_ready.open()


async def test_an_id_is_used_once_at_a_time(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy()
    node.script.before_finish.shut()
    first = await cluster.caller.generate(request_id="same").until("tokens")
    with pytest.raises(errors.RequestIdInUse):
        await cluster.caller.complete(request_id="same")
    node.script.before_finish.open()
    await first.end()
    await cluster.caller.complete(request_id="same")


async def test_a_deadline_ends_a_queued_request(cluster: Cluster, node: FakeNode) -> None:
    node.init_seconds = None
    node.links.clear()
    node.send_full()
    await cluster.caller.deploy()
    node.script.before_ready.shut()
    with pytest.raises(errors.DeadlineExceeded):
        await cluster.caller.complete(timeout=0.3)

    async def empty() -> bool:
        return (await cluster.caller.deployment("tiny")).queued_requests == 0

    await assert_eventually(empty)
    node.script.before_ready.open()


async def test_what_cannot_meet_its_deadline_is_refused_with_the_estimate(
    cluster: Cluster, node: FakeNode
) -> None:
    node.init_seconds = 1000.0
    node.send_full()
    await cluster.caller.deploy()
    with pytest.raises(errors.DeadlineExceeded) as caught:
        await cluster.caller.complete(timeout=10.0)
    assert float(caught.value.metadata["estimated_wait_seconds"]) > 999
    assert node.count("StartInstance") == 0


async def test_a_deadline_goes_on_to_the_node(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy()
    await cluster.caller.complete()
    node.script.before_finish.shut()

    async def late() -> bool:
        with pytest.raises(errors.DeadlineExceeded):
            await cluster.caller.complete(timeout=0.3)
        return bool(node.cancelled)  # unless it came too late to be given to the node

    await assert_eventually(late)
    node.script.before_finish.open()


async def test_tokens_are_relayed_unaltered_for_many_streams_at_once(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.deploy()
    streams = await asyncio.gather(*(cluster.caller.complete(max_tokens=20) for _ in range(80)))
    for stream in streams:
        assert stream.text == "".join(f"{index} " for index in range(20))
        assert [event.sequence for event in stream.events] == list(range(len(stream.events)))
    assert node.count("StartInstance") == 1


async def test_the_first_event_tells_how_long_it_will_take(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.deploy()
    node.script.before_finish.shut()
    cold = await cluster.caller.generate().until("tokens")
    warm = await cluster.caller.generate().until("tokens")
    node.script.before_finish.open()
    cold_wait = cold.events[0].queued.estimated_wait.ToNanoseconds() / 1e9
    assert cold_wait == pytest.approx(0.01 + 0.1, abs=0.1)
    assert warm.events[0].queued.estimated_wait.ToNanoseconds() == 0
    assert warm.events[0].queued.HasField("estimated_wait")


async def test_the_expected_wait_counts_the_turns_of_other_deployments(
    cluster: Cluster, node: FakeNode
) -> None:
    """The node has room for one instance at a time; each is busy for as long as `busy` was."""
    names = ("busy", "second", "third")
    for name in names:
        await cluster.caller.deploy(name, f"file:///{name}", kv_cache_tokens=40 * 1024)
    for name in names:
        await cluster.caller.complete(name)
    node.script.before_finish.shut()
    busy = await cluster.caller.generate("busy").until("tokens")
    second = await cluster.caller.generate("second", priority=1).until("queued")
    third = await cluster.caller.generate("third").until("queued")
    node.script.before_finish.open()
    for stream in (busy, second, third):
        await stream.end()
    waits = [one.events[0].queued for one in (second, third)]
    assert all(one.HasField("estimated_wait") for one in waits)
    seconds = [one.estimated_wait.ToNanoseconds() / 1e9 for one in waits]
    assert seconds[1] > seconds[0] > 0


async def test_a_call_may_have_no_deadline(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy()
    stream = await cluster.caller.complete(timeout=None)
    assert stream.text == "0 1 2 "


async def test_who_comes_during_a_start_is_told_how_far_it_is(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.deploy()
    node.script.before_ready.shut()
    first = await cluster.caller.generate().until("loading")
    second = await cluster.caller.generate().until("loading")
    assert second.events[-1].loading.loaded_bytes == first.events[-1].loading.loaded_bytes
    node.script.before_ready.open()
    await first.end()
    await second.end()
