"""Adapters in the control plane: their requests are their base's, and take them along."""

import pytest
from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1 import model_service_pb2 as model_pb

from sllm import errors
from tests.control.clusters import Cluster
from tests.control.fake_node import FakeNode
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
