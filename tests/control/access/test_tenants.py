"""Two tenants over the wire: neither sees, uses or names what the other has."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from serverlessllm.v1 import batch_service_pb2 as batch_pb
from serverlessllm.v1 import cluster_service_pb2 as cluster_pb
from serverlessllm.v1 import deployment_service_pb2 as deployment_pb
from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1 import tenant_service_pb2 as tenant_pb

import sllm
from sllm import errors, rpc
from tests.control.clusters import Caller, Cluster
from tests.control.fake_node import FakeNode
from tests.fuzz.protocol import METHODS
from tests.support import assert_eventually

SECONDS = 20.0


@dataclass
class Shared:
    """A cluster of two tenants, and the clients of their operators and of an admin."""

    address: str
    node: FakeNode
    admin: sllm.AsyncClient
    acme: sllm.AsyncClient
    zebra: sllm.AsyncClient
    secrets: dict[str, str]


@asynccontextmanager
async def shared_in(directory: Path, **settings: Any) -> AsyncIterator[Shared]:
    async with AsyncExitStack() as stack:
        cluster = Cluster(directory, auth=True, **settings)
        await cluster.start()
        stack.push_async_callback(cluster.stop)
        node = FakeNode("n1")
        await node.start(cluster.address)
        stack.push_async_callback(node.die)
        secrets = {"admin": (directory / "admin-key").read_text().strip()}
        admin = sllm.AsyncClient(cluster.address, api_key=secrets["admin"])
        await stack.enter_async_context(admin)
        await assert_eventually(admin.nodes)
        clients = {}
        for tenant in ("acme", "zebra"):
            secrets[tenant] = (await admin.create_key(tenant=tenant, role="operator")).secret
            client = sllm.AsyncClient(cluster.address, api_key=secrets[tenant])
            clients[tenant] = await stack.enter_async_context(client)
        yield Shared(cluster.address, node, admin, **clients, secrets=secrets)
        await node.leave()


@pytest.fixture
async def shared(tmp_path: Path) -> AsyncIterator[Shared]:
    async with shared_in(tmp_path) as shared:
        yield shared


async def test_two_tenants_may_use_one_name_for_two_models(shared: Shared) -> None:
    await shared.acme.deploy("llama", "file:///models/a")
    await shared.zebra.deploy("llama", "file:///models/z")
    assert [one.source for one in await shared.acme.deployments()] == ["file:///models/a"]
    assert (await shared.zebra.deployment("llama")).source == "file:///models/z"
    everything = {one.name: one.source for one in await shared.admin.deployments()}
    assert everything == {"acme:llama": "file:///models/a", "zebra:llama": "file:///models/z"}
    await shared.zebra.delete("llama")
    assert [one.name for one in await shared.acme.deployments()] == ["llama"]


async def test_a_generation_is_its_tenants_alone(shared: Shared) -> None:
    await shared.acme.deploy("llama", "file:///models/a")
    shared.node.script.before_finish.shut()
    async with shared.acme.generate("llama", "hello", request_id="r") as stream:
        started = None
        while not isinstance(event := await stream.receive(), sllm.Tokens):
            started = event
        assert isinstance(started, sllm.Started)
        assert started.request_id == "r"
        for name in ("r", "acme:r"):
            with pytest.raises(errors.RequestNotFound):
                await shared.zebra.cancel(name)
        shared.node.script.before_finish.open()
        await stream.result()
    assert (await shared.acme.receipt("r")).deployment == "llama"
    assert (await shared.acme.receipt()).request_id == "r"
    with pytest.raises(errors.RequestNotFound):
        await shared.zebra.receipt()
    for name in ("r", "acme:r"):
        with pytest.raises(errors.RequestNotFound):
            await shared.zebra.receipt(name)


async def test_an_id_that_the_cluster_has_chosen_can_be_named_later(shared: Shared) -> None:
    await shared.acme.deploy("llama", "file:///models/a")
    metadata = [("authorization", f"Bearer {shared.secrets['acme']}")]
    request = inference_pb.GenerateRequest(deployment="llama", text="hello")
    async with rpc.channel(shared.address) as channel:
        call = Caller(channel).inference.Generate(request, metadata=metadata, timeout=SECONDS)
        (chosen,) = [one.started.request_id async for one in call if one.HasField("started")]
    assert ":" not in chosen
    assert (await shared.acme.receipt(chosen)).request_id == chosen


async def test_anothers_name_is_told_apart_from_none_by_nothing(shared: Shared) -> None:
    """Also by the words, but for the name itself."""
    await shared.zebra.deploy("stripes", "file:///models/z")
    for name in ("stripes", "zebra:stripes", "nothing"):
        with pytest.raises(errors.DeploymentNotFound) as caught:
            await shared.acme.deployment(name)
        said = caught.value.message.replace(repr(name), "NAME")
        assert said == "no deployment is named NAME; ListDeployments tells which there are"
        with pytest.raises(errors.DeploymentNotFound):
            await shared.acme.complete(name, "hello")
        with pytest.raises(errors.DeploymentNotFound):
            await shared.acme.pin(name, node="n1", tier="ssd")
        with pytest.raises(errors.DeploymentNotFound):
            await shared.acme.delete(name)
    assert await shared.zebra.deployments()


async def test_a_name_of_another_tenant_cannot_be_taken(shared: Shared) -> None:
    for name in ("zebra:llama", "default:llama", "acme:llama"):
        with pytest.raises(errors.InvalidName, match="deployment name"):
            await shared.acme.deploy(name, "file:///models/a")


async def test_a_batch_is_its_tenants_alone(shared: Shared) -> None:
    await shared.acme.deploy("llama", "file:///models/a")
    request = sllm.BatchRequest(deployment="llama", prompt="hello", request_id="one")
    named = await shared.acme.submit_batch([request], batch_id="mine")
    chosen = await shared.acme.submit_batch([request])
    assert named.batch_id == "mine"
    assert ":" not in chosen.batch_id
    results = [one async for one in shared.acme.batch_results(chosen.batch_id, follow=True)]
    assert [one.request_id for one in results] == ["one"]
    assert {one.batch_id for one in await shared.acme.batches()} == {"mine", chosen.batch_id}
    assert await shared.zebra.batches() == []
    for name in ("mine", "acme:mine", chosen.batch_id):
        with pytest.raises(errors.BatchNotFound):
            await shared.zebra.batch(name)


async def test_what_tenants_share_takes_an_admin(shared: Shared) -> None:
    with pytest.raises(errors.PermissionDenied, match="takes an admin"):
        await shared.acme.nodes()
    with pytest.raises(errors.PermissionDenied, match="takes an admin"):
        await shared.acme.explain("llama")
    assert await shared.admin.nodes()


async def test_each_sees_its_own_books_and_an_admin_all(shared: Shared) -> None:
    await shared.admin.set_tenant("zebra", sllm.TenantLimits(requests=3))
    await shared.admin.set_tenant("acme", sllm.TenantLimits(requests=0))
    assert {one.tenant for one in await shared.admin.tenants()} >= {"acme", "zebra"}
    assert [one.limits.requests for one in await shared.zebra.tenants()] == [3]
    for who, expected in (("admin", ("default", True)), ("zebra", ("zebra", False))):
        metadata = [("authorization", f"Bearer {shared.secrets[who]}")]
        async with rpc.channel(shared.address) as channel:
            ask = Caller(channel).tenants.ListTenants
            told = await ask(tenant_pb.ListTenantsRequest(), metadata=metadata, timeout=SECONDS)
        assert (told.caller_tenant, told.caller_sees_all) == expected
    with pytest.raises(errors.PermissionDenied):
        await shared.acme.set_tenant("acme", sllm.TenantLimits())
    await shared.acme.deploy("llama", "file:///models/a")
    with pytest.raises(errors.TenantLimit):
        await shared.acme.complete("llama", "hello")


HOOFS = ("zebra", "stripes", "hoof", "/models/z")
"""Words of one tenant, each of which tells something of it."""


async def test_no_answer_to_one_tenant_has_a_word_of_the_other(shared: Shared) -> None:
    """Every method that an operator of the first may call, asked of all that it may ask."""
    await shared.zebra.deploy("stripes", "file:///models/z", keep_alive=60.0)
    await shared.zebra.complete("stripes", "hello", request_id="hoof")
    await shared.zebra.pin("stripes", node="n1", tier="ssd")
    request = sllm.BatchRequest(deployment="stripes", prompt="hello", request_id="hoof")
    await shared.zebra.submit_batch([request], batch_id="hoofs")
    await shared.acme.deploy("llama", "file:///models/a")
    metadata = [("authorization", f"Bearer {shared.secrets['acme']}")]
    async with rpc.channel(shared.address) as channel:
        for method in METHODS:
            if method.server == "control" and method.key.split(".")[1].startswith("List"):
                call: Any = channel.unary_unary(method.path)
                try:
                    answer = await call(b"", metadata=metadata, timeout=SECONDS)
                except grpc.aio.AioRpcError as error:
                    answer = str(error).encode()
                assert not [word for word in HOOFS if word.encode() in answer], method
        caller = Caller(channel)
        for asked in (
            caller.deployments.GetDeployment(
                deployment_pb.GetDeploymentRequest(name="stripes"), metadata=metadata
            ),
            caller.batches.GetBatch(batch_pb.GetBatchRequest(batch_id="x"), metadata=metadata),
            caller.cluster.GetReceipt(cluster_pb.GetReceiptRequest(), metadata=metadata),
            caller.inference.Cancel(inference_pb.CancelRequest(request_id="x"), metadata=metadata),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await asked
            assert not [word for word in ("zebra", "hoof", "/models/z") if word in str(caught)]


async def test_a_bounded_tenant_prefetches_no_source_that_would_count_for_nobody(
    shared: Shared,
) -> None:
    await shared.admin.set_tenant("acme", sllm.TenantLimits(ssd_bytes=1 << 40))
    for tier in ("SSD", "DRAM"):  # what is in memory is on disk as well
        with pytest.raises(errors.TenantLimit, match="deploy the source") as caught:
            await shared.acme.prefetch(source="file:///models/other", tier=tier)
        assert caught.value.metadata["limit"] == "ssd_bytes"
    await shared.acme.deploy("llama", "file:///models/a")
    await shared.acme.prefetch("llama", tier="SSD")
    await shared.zebra.prefetch(source="file:///models/other", tier="SSD")
    await shared.admin.prefetch(source="file:///models/more", tier="SSD")
