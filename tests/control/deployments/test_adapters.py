"""Adapters in the control plane: their requests are their base's, and take them along."""

from dataclasses import replace

import pytest
from serverlessllm.v1 import cluster_service_pb2 as cluster_pb
from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1 import model_service_pb2 as model_pb
from serverlessllm.v1 import node_service_pb2 as node_pb
from serverlessllm.v1 import types_pb2 as pb

from sllm import errors
from sllm.clock import ManualClock
from sllm.control.cluster.instances import LoadedAdapter
from sllm.control.cluster.tiers import Tier
from sllm.control.orchestration.agenda import Agenda
from sllm.control.requests.service_times import ServiceTimes
from sllm.control.routing.relay import ADAPTER_ELSEWHERE
from sllm.control.state.state import State
from tests.control.clusters import Cluster
from tests.control.fake_node import FakeNode
from tests.control.shapes import copy, deployment, instance, view
from tests.support import assert_eventually

LEGAL = "file:///adapters/legal"


@pytest.fixture
async def base(cluster: Cluster, node: FakeNode) -> str:
    node.adapters = {LEGAL: "L", "file:///adapters/other": "O"}
    await cluster.caller.deploy(max_adapters=2, max_concurrency=4, max_replicas=2)
    return "tiny"


def asked(node: FakeNode) -> list[inference_pb.GenerateRequest]:
    return [one for one in node.calls if isinstance(one, inference_pb.GenerateRequest)]


async def test_its_requests_start_and_use_instances_of_the_base(
    cluster: Cluster, node: FakeNode, base: str
) -> None:
    await cluster.caller.deploy("legal", LEGAL, base=base, keep_alive=7.0)
    stream = await cluster.caller.complete("legal")
    plain = await cluster.caller.complete(base)
    assert node.started() == [base]
    assert (stream.receipt.deployment, stream.receipt.adapter) == (base, "legal")
    assert (plain.receipt.deployment, plain.receipt.adapter) == (base, "")
    first, second = asked(node)
    assert (first.adapter.source, first.adapter.identity) == (LEGAL, "L")
    assert first.adapter.keep_alive.ToSeconds() == 7
    assert not second.HasField("adapter")


async def test_what_a_caller_says_of_an_adapter_counts_for_nothing(
    cluster: Cluster, node: FakeNode, base: str
) -> None:
    theirs = inference_pb.AdapterSource(source="file:///etc", identity="X", deployment="legal")
    await cluster.caller.complete(base, adapter=theirs)
    assert not asked(node)[0].HasField("adapter")


async def test_an_instance_that_has_it_is_preferred(
    cluster: Cluster, node: FakeNode, base: str
) -> None:
    await cluster.caller.deploy("legal", LEGAL, base=base)
    await cluster.caller.deploy(max_adapters=2, max_concurrency=4, max_replicas=2, min_replicas=2)
    await cluster.wait_for_instances(2)
    places = {(await cluster.caller.complete("legal")).receipt.instance_id for _ in range(6)}
    assert len(places) == 1
    node.script.before_finish.shut()
    streams = [await cluster.caller.generate("legal").until("tokens") for _ in range(6)]
    used = [one.instance_id for one in asked(node)[-6:]]
    assert used[:4] == [*places] * 4, "as long as it has a slot"
    assert set(used[4:]).isdisjoint(places)
    node.script.before_finish.open()
    for stream in streams:
        await stream.end()


async def test_it_is_told_of_as_what_it_is(cluster: Cluster, node: FakeNode, base: str) -> None:
    await cluster.caller.deploy("legal", LEGAL, base=base)
    await cluster.caller.complete("legal")

    async def has_it() -> bool:
        return (await cluster.caller.deployment("legal")).ready_instances == 1

    await assert_eventually(has_it)
    one, over = await cluster.caller.deployment("legal"), await cluster.caller.deployment(base)
    assert (one.base, one.engine.engine) == (base, over.engine.engine)
    assert (one.model.adapter.rank, one.model.size_bytes, one.model.identity) == (4, 100, "L")
    assert one.model.context_tokens == over.model.context_tokens
    request = model_pb.GetModelRequest(deployment="legal")
    answer = await cluster.caller.models.GetModel(request, timeout=10)
    assert (answer.base, answer.info.identity) == (base, "L")


async def test_it_goes_on_elsewhere_with_its_request(
    cluster: Cluster, node: FakeNode, base: str
) -> None:
    await cluster.caller.deploy("legal", LEGAL, base=base)
    node.script.generate_errors.append(errors.WorkerDied("killed"))
    stream = await cluster.caller.complete("legal")
    assert stream.text == "0 1 2 "
    assert [one.adapter.identity for one in asked(node)] == ["L", "L"]


async def test_a_base_with_adapters_neither_goes_nor_becomes_another(
    cluster: Cluster, node: FakeNode, base: str
) -> None:
    await cluster.caller.deploy("legal", LEGAL, base=base)
    with pytest.raises(errors.AdaptersLeft, match="legal"):
        await cluster.caller.delete(base)
    with pytest.raises(errors.AdaptersLeft, match="max_adapters"):
        await cluster.caller.deploy()
    node.script.model.identity = "B"
    with pytest.raises(errors.AdaptersLeft, match="another model"):
        await cluster.caller.deploy(max_adapters=2)
    assert (await cluster.caller.deployment(base)).model.identity == "A"
    await cluster.caller.delete("legal")
    await cluster.caller.deploy(max_adapters=2)
    await cluster.caller.delete(base)


async def test_a_base_goes_on_to_another_engine_only_if_its_adapters_fit_there(
    cluster: Cluster, node: FakeNode, base: str
) -> None:
    node.engines = dict.fromkeys(("transformers", "vllm"), True)
    node.send_delta()

    async def told() -> bool:
        return len((await cluster.caller.node(node.node_id)).engines) == len(node.engines)

    await assert_eventually(told)
    await cluster.caller.deploy("legal", LEGAL, base=base)
    await cluster.caller.deploy("other", "file:///adapters/other", base=base)
    node.unfit = {LEGAL: "vllm"}
    with pytest.raises(
        errors.AdaptersLeft, match=r"legal.*no layers w1: it has 7 others"
    ) as refused:
        await cluster.caller.deploy(engine="vllm", max_adapters=2)
    assert refused.value.metadata["adapters"] == "legal"
    assert (await cluster.caller.deployment(base)).engine.engine == "transformers"
    node.unfit.clear()
    changed = await cluster.caller.deploy(engine="vllm", max_adapters=2)
    assert changed.engine.engine == "vllm"
    looks = [one for one in node.calls if isinstance(one, node_pb.InspectSourceRequest)]
    assert [one.engine for one in looks if one.HasField("base")][-2:] == ["vllm", "vllm"]


async def test_it_is_there_again_after_a_restart(
    cluster: Cluster, node: FakeNode, base: str
) -> None:
    await cluster.caller.deploy("legal", LEGAL, base=base)
    before = await cluster.caller.deployment("legal")
    await cluster.restart_control()
    after = await cluster.caller.deployment("legal")
    assert (after.base, after.model.adapter) == (before.base, before.model.adapter)
    with pytest.raises(errors.AdaptersLeft):
        await cluster.caller.delete(base)


async def test_what_is_no_base_or_has_a_say_of_its_own_is_refused(
    cluster: Cluster, node: FakeNode, base: str
) -> None:
    await cluster.caller.deploy("legal", LEGAL, base=base)
    await cluster.caller.deploy("plain", "file:///models/plain")
    with pytest.raises(errors.UnsupportedAdapter, match="is an adapter itself"):
        await cluster.caller.deploy("over", LEGAL, base="legal")
    with pytest.raises(errors.UnsupportedAdapter, match="takes no adapters"):
        await cluster.caller.deploy("over", LEGAL, base="plain")
    with pytest.raises(errors.DeploymentNotFound, match="nobody"):
        await cluster.caller.deploy("over", LEGAL, base="nobody")
    for said in ({"min_replicas": 1}, {"engine": "vllm"}, {"kv_cache_tokens": 9}):
        with pytest.raises(errors.InvalidArgument, match="its base's"):
            await cluster.caller.deploy("over", LEGAL, base=base, **said)
    with pytest.raises(errors.InvalidArgument, match="its own base"):
        await cluster.caller.deploy("over", LEGAL, base="over")
    with pytest.raises(errors.DeploymentExists, match="an adapter over tiny"):
        await cluster.caller.deploy("legal", LEGAL)


async def test_an_instance_from_before_its_base_took_adapters_gets_none(
    cluster: Cluster, node: FakeNode
) -> None:
    node.adapters = {LEGAL: "L"}
    await cluster.caller.deploy(max_replicas=2)
    node.script.before_finish.shut()
    busy = await cluster.caller.generate().until("tokens")
    before = asked(node)[0].instance_id
    node.script.before_ready.shut()
    await cluster.caller.deploy(max_replicas=2, max_adapters=2)
    await cluster.caller.deploy("legal", LEGAL, base="tiny")
    stream = await cluster.caller.generate("legal").until("loading")
    node.script.before_ready.open()
    node.script.before_finish.open()
    await stream.end()
    await busy.end()
    assert asked(node)[-1].instance_id != before
    assert [one.HasField("adapter") for one in asked(node)] == [False, True]


@pytest.fixture
async def two(cluster: Cluster, node: FakeNode, base: str) -> str:
    """Two instances of a base, of which each has one adapter at a time; it has two."""
    await cluster.caller.deploy(max_adapters=1, max_concurrency=8, max_replicas=2, min_replicas=2)
    await cluster.caller.deploy("legal", LEGAL, base=base)
    await cluster.caller.deploy("other", "file:///adapters/other", base=base)

    async def changed() -> bool:
        there = await cluster.caller.instances()
        return [one.config.max_adapters for one in there if one.state == 2] == [1, 1]

    await assert_eventually(changed)
    return base


@pytest.mark.parametrize("error", ADAPTER_ELSEWHERE)
async def test_what_one_node_cannot_load_another_one_may(
    cluster: Cluster, node: FakeNode, two: str, error: type[errors.SllmError]
) -> None:
    """And those behind it get what it avoids. If no instance can, its caller is told why."""
    node.script.generate_errors.append(error("here"))
    stream = await cluster.caller.complete("legal")
    assert stream.text == "0 1 2 "
    first, second = asked(node)
    assert first.instance_id != second.instance_id
    assert len(await cluster.caller.instances()) == 2, "it is no fault of the instance's"
    node.script.generate_errors += [error("here"), error("there")]
    with pytest.raises(error, match="there"):
        await cluster.caller.complete("legal")
    assert (await cluster.caller.complete(two)).text == "0 1 2 "


async def test_requests_do_not_heap_up_where_they_would_stand_in_line(
    cluster: Cluster, node: FakeNode, two: str
) -> None:
    node.adapters["file:///adapters/third"] = "T"
    await cluster.caller.deploy("third", "file:///adapters/third", base=two)
    node.script.before_finish.shut()
    names = ["legal", "other", "legal", "other", "third", "third", "third", "third"]
    streams = [await cluster.caller.generate(name).until("tokens") for name in names]
    places: dict[str, set[str]] = {}
    for one in asked(node):
        places.setdefault(one.adapter.deployment, set()).add(one.instance_id)
    assert len(places["legal"]) == len(places["other"]) == 1
    assert places["legal"] != places["other"]
    assert len(places["third"]) == 2
    node.script.before_finish.open()
    for stream in streams:
        await stream.end()


async def test_what_has_given_its_adapter_up_is_begun_again(
    cluster: Cluster, node: FakeNode, base: str
) -> None:
    await cluster.caller.deploy("legal", LEGAL, base=base)
    node.script.generate_errors.append(errors.Cancelled("its adapter gives way"))
    request = inference_pb.GenerateRequest(deployment="legal", request_id="one", max_tokens=3)
    request.token_ids.ids.extend((7, 8))
    await cluster.caller.submit([request], "batch")
    (result,) = await cluster.caller.results("batch")
    assert result.HasField("answer")
    assert len(asked(node)) == 2


async def test_requests_of_a_batch_have_their_own_adapters(
    cluster: Cluster, node: FakeNode, base: str
) -> None:
    await cluster.caller.deploy("legal", LEGAL, base=base)
    await cluster.caller.deploy("other", "file:///adapters/other", base=base)
    names = ["legal", "other", base, "legal", "other", base]
    batch = [inference_pb.GenerateRequest(deployment=name, max_tokens=3) for name in names]
    for number, request in enumerate(batch):
        request.request_id = str(number)
        request.token_ids.ids.extend((7, 8))
    await cluster.caller.submit(batch, "batch")
    results = await cluster.caller.results("batch")
    assert [one.answer.tokens.text for one in results] == ["0 1 2 "] * len(names)
    identities = {"legal": "L", "other": "O", base: ""}
    taken = {one.request_id.partition("/")[-1]: one.adapter.identity for one in asked(node)}
    by_number = [taken[key] for key in sorted(taken)]
    assert by_number == [identities[name] for name in names]
    assert set(node.started()) == {base}


async def test_who_watches_is_told_of_the_adapter_of_what_has_ended(
    cluster: Cluster, node: FakeNode, base: str
) -> None:
    await cluster.caller.deploy("legal", LEGAL, base=base)
    node.script.generate_errors.append(errors.InvalidPrompt("no"))
    with pytest.raises(errors.InvalidPrompt):
        await cluster.caller.complete("legal")
    await cluster.caller.complete(base)
    stream = cluster.caller.cluster.WatchCluster(cluster_pb.WatchClusterRequest(), timeout=10)
    first = await stream.read()
    stream.cancel()
    told = [
        (one.deployment, one.outcome, one.adapter, one.adapter_identity)
        for one in first.full.ended_requests
    ]
    assert told == [(base, "INVALID_PROMPT", "legal", "L"), (base, "OK", "", "")]


async def test_the_wait_for_an_adapter_says_nothing_of_the_base(
    cluster: Cluster, node: FakeNode, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned: list[str] = []
    monkeypatch.setattr(ServiceTimes, "served", lambda _, name, __: learned.append(name))
    await cluster.caller.deploy("legal", LEGAL, base=base)
    node.script.phases = [pb.Phase(kind=pb.PHASE_KIND_ATTACH)]
    await cluster.caller.complete("legal")
    assert not learned
    node.script.phases = []
    await cluster.caller.complete("legal")
    assert learned == [base]


def test_who_watches_an_adapter_is_told_of_its_base() -> None:
    state = State()
    base = deployment("tiny")
    over = replace(base, spec=replace(base.spec, name="legal", base="tiny"))
    state.set_deployment(base)
    state.set_deployment(over)
    told = state.changes.changed("legal")
    Agenda(state.changes, ManualClock()).wake("tiny")
    assert told.is_set()
    assert state.adapters_of("tiny") == [over]
    state.drop_deployment("legal")
    assert not state.adapters_of("tiny")


@pytest.mark.parametrize("shared", [False, True])
def test_what_is_stopped_gives_the_room_of_its_adapters_back(shared: bool) -> None:
    """Unless another instance has the same."""
    adapters = (LoadedAdapter("legal", "L", "a"),)
    one = replace(instance("i1", "base", digest="b", kv=10), adapters=adapters)
    other = replace(instance("i2", "base", digest="c", kv=10), adapters=adapters * shared)
    copies = [copy(digest, Tier.DRAM, size=300, leased=True) for digest in "abc"]
    node = view(copies=copies, instances=[one, other])
    assert {one.key for one in node.weights_held} == {"a", "b", "c"}
    left = {one.key for one in node.weights_held_without(frozenset({"i1"}))}
    assert left == ({"a", "c"} if shared else {"c"})
