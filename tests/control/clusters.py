"""A real control plane with fake nodes, and a caller of it, all in this process."""

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from serverlessllm.v1 import batch_service_pb2 as batch_pb
from serverlessllm.v1 import cluster_service_pb2 as cluster_pb
from serverlessllm.v1 import deployment_service_pb2 as deployment_pb
from serverlessllm.v1 import embedding_service_pb2 as embedding_pb
from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1 import model_service_pb2 as model_pb
from serverlessllm.v1 import tenant_service_pb2 as tenant_pb
from serverlessllm.v1 import types_pb2 as pb
from serverlessllm.v1.batch_service_pb2_grpc import BatchServiceStub
from serverlessllm.v1.cluster_service_pb2_grpc import ClusterServiceStub
from serverlessllm.v1.deployment_service_pb2_grpc import DeploymentServiceStub
from serverlessllm.v1.embedding_service_pb2_grpc import EmbeddingServiceStub
from serverlessllm.v1.inference_service_pb2_grpc import InferenceServiceStub
from serverlessllm.v1.model_service_pb2_grpc import ModelServiceStub
from serverlessllm.v1.tenant_service_pb2_grpc import TenantServiceStub

from sllm import errors, rpc
from sllm.control.batches.store import BatchStore
from sllm.control.config import ControlConfig
from sllm.control.server import running
from sllm.control.state.sqlite import SqliteStore
from tests.control.fake_node import FakeNode
from tests.support import assert_eventually, held_port

EOF: Any = grpc.aio.EOF
SECONDS = 20.0
"""Deadline of every call in tests."""


@dataclass
class Stream:
    """A Generate call that goes on beside the test."""

    call: Any
    events: list[inference_pb.GenerateResponse] = field(default_factory=list)

    @property
    def kinds(self) -> list[str]:
        return [str(event.WhichOneof("event")) for event in self.events]

    @property
    def token_ids(self) -> list[int]:
        return [token for event in self.events for token in event.tokens.token_ids]

    @property
    def text(self) -> str:
        return "".join(event.tokens.text for event in self.events)

    @property
    def receipt(self) -> pb.Receipt:
        return self.events[-1].finished.receipt

    async def until(self, kind: str) -> "Stream":
        """Reads up to the first event of this kind."""
        with rpc.typed_errors():
            while kind not in self.kinds:
                event = await self.call.read()
                assert event is not EOF, f"the stream ended without {kind}"
                self.events.append(event)
        return self

    async def until_tokens(self, count: int) -> "Stream":
        """Reads until so many tokens have come, in as many events as it takes."""
        with rpc.typed_errors():
            while len(self.token_ids) < count:
                event = await self.call.read()
                assert event is not EOF, f"the stream ended with {len(self.token_ids)} tokens"
                self.events.append(event)
        return self

    async def end(self) -> "Stream":
        """Reads to the end."""
        with rpc.typed_errors():
            while (event := await self.call.read()) is not EOF:
                self.events.append(event)
        return self


class Caller:
    """The control plane's services, as a client calls them."""

    def __init__(self, channel: Any) -> None:
        self.deployments = DeploymentServiceStub(channel)
        self.inference = InferenceServiceStub(channel)
        self.cluster = ClusterServiceStub(channel)
        self.models = ModelServiceStub(channel)
        self.embedding = EmbeddingServiceStub(channel)
        self.batches = BatchServiceStub(channel)
        self.tenants = TenantServiceStub(channel)

    async def deploy(
        self,
        name: str = "tiny",
        source: str = "file:///models/tiny",
        *,
        request_id: str = "",
        keep_alive: float = 60.0,
        min_replicas: int | None = None,
        max_replicas: int | None = None,
        kv_cache_tokens: int | None = None,
        max_concurrency: int | None = None,
        learn_keep_alive: bool | None = None,
        target_time_per_token: float | None = None,
        engine: str = "",
        dtype: str = "",
        base: str = "",
        max_adapters: int = 0,
        tensor_parallel: int = 0,
        image_hosts: Sequence[str] = (),
    ) -> deployment_pb.Deployment:
        scaling = pb.ScalingPolicy(
            min_replicas=min_replicas, max_replicas=max_replicas, learn_keep_alive=learn_keep_alive
        )
        if target_time_per_token is not None:
            scaling.target_time_per_token.FromNanoseconds(int(target_time_per_token * 1e9))
        scaling.keep_alive.FromNanoseconds(int(keep_alive * 1e9))
        request = deployment_pb.DeployRequest(
            request_id=request_id,
            name=name,
            source=source,
            engine=pb.EngineConfig(
                engine=engine,
                dtype=dtype,
                kv_cache_tokens=kv_cache_tokens,
                max_concurrency=max_concurrency,
                max_adapters=max_adapters,
                tensor_parallel=tensor_parallel,
            ),
            scaling=scaling,
            base=base,
            image_hosts=image_hosts,
        )
        with rpc.typed_errors():
            response: deployment_pb.DeployResponse = await self.deployments.Deploy(
                request, timeout=SECONDS
            )
        return response.deployment

    async def delete(self, name: str, request_id: str = "") -> None:
        request = deployment_pb.DeleteDeploymentRequest(name=name, request_id=request_id)
        with rpc.typed_errors():
            await self.deployments.DeleteDeployment(request, timeout=SECONDS)

    async def deployment(self, name: str) -> deployment_pb.Deployment:
        request = deployment_pb.GetDeploymentRequest(name=name)
        with rpc.typed_errors():
            response: deployment_pb.GetDeploymentResponse = await self.deployments.GetDeployment(
                request, timeout=SECONDS
            )
        return response.deployment

    async def nodes(self) -> list[pb.Node]:
        response = await self.cluster.ListNodes(
            cluster_pb.ListNodesRequest(),
            timeout=SECONDS,
            wait_for_ready=True,  # after a restart the nodes' connection may be in backoff
        )
        return list(response.nodes)

    async def instances(self, deployment: str = "") -> list[pb.Instance]:
        request = cluster_pb.ListInstancesRequest(deployment=deployment)
        response = await self.cluster.ListInstances(request, timeout=SECONDS)
        return list(response.instances)

    async def stream(self, method: str, request: Any) -> list[Any]:
        """All messages of a streaming call of ClusterService."""
        with rpc.typed_errors():
            return [one async for one in getattr(self.cluster, method)(request, timeout=SECONDS)]

    async def ask(self, method: str, request: Any) -> Any:
        """The answer to a call of ClusterService."""
        with rpc.typed_errors():
            return await getattr(self.cluster, method)(request, timeout=SECONDS)

    async def node(self, node_id: str = "n1") -> pb.Node:
        return next(one for one in await self.nodes() if one.node_id == node_id)

    async def count_tokens(self, name: str, text: str) -> model_pb.CountTokensResponse:
        request = model_pb.CountTokensRequest(deployment=name, text=text)
        with rpc.typed_errors():
            answer: model_pb.CountTokensResponse = await self.models.CountTokens(
                request, timeout=SECONDS
            )
        return answer

    async def embed(
        self, *texts: str, name: str = "tiny", timeout: float = SECONDS, **fields: Any
    ) -> embedding_pb.EmbedResponse:
        inputs = [embedding_pb.EmbedInput(text=text) for text in texts]
        request = embedding_pb.EmbedRequest(deployment=name, inputs=inputs, **fields)
        answer: embedding_pb.EmbedResponse = await self.ask_encoder("Embed", request, timeout)
        return answer

    async def score(
        self, query: str, *documents: str, name: str = "tiny", **fields: Any
    ) -> embedding_pb.ScoreResponse:
        request = embedding_pb.ScoreRequest(
            deployment=name, queries=[query], documents=documents, **fields
        )
        answer: embedding_pb.ScoreResponse = await self.ask_encoder("Score", request)
        return answer

    async def ask_encoder(self, method: str, request: Any, timeout: float = SECONDS) -> Any:
        """The answer to a call of EmbeddingService."""
        with rpc.typed_errors():
            return await getattr(self.embedding, method)(request, timeout=timeout)

    def generate(
        self,
        name: str = "tiny",
        *,
        text: str = "hello",
        timeout: float | None = SECONDS,
        **fields: Any,
    ) -> Stream:
        request = inference_pb.GenerateRequest(deployment=name, **fields)
        if request.WhichOneof("prompt") is None:
            request.text = text
        return Stream(self.inference.Generate(request, timeout=timeout))

    async def complete(self, name: str = "tiny", **fields: Any) -> Stream:
        return await self.generate(name, **fields).end()

    async def submit(
        self,
        requests: Iterable[inference_pb.GenerateRequest],
        batch_id: str = "",
        time_limit: float | None = None,
    ) -> batch_pb.Batch:
        header = batch_pb.BatchHeader(batch_id=batch_id)
        if time_limit is not None:
            header.time_limit.FromNanoseconds(int(time_limit * 1e9))
        messages = [batch_pb.SubmitBatchRequest(header=header)]
        messages += [batch_pb.SubmitBatchRequest(request=one) for one in requests]
        end = batch_pb.BatchEnd(requests=len(messages) - 1)
        messages.append(batch_pb.SubmitBatchRequest(end=end))
        with rpc.typed_errors():
            answer: batch_pb.SubmitBatchResponse = await self.batches.SubmitBatch(
                iter(messages), timeout=SECONDS
            )
        return answer.batch

    async def batch(self, batch_id: str) -> batch_pb.Batch:
        with rpc.typed_errors():
            request = batch_pb.GetBatchRequest(batch_id=batch_id)
            answer: batch_pb.GetBatchResponse = await self.batches.GetBatch(
                request, timeout=SECONDS, wait_for_ready=True
            )
        return answer.batch

    async def results(
        self, batch_id: str, first: int = 0, *, follow: bool = True
    ) -> list[batch_pb.BatchResult]:
        request = batch_pb.ReadBatchResultsRequest(
            batch_id=batch_id, from_number=first, follow=follow
        )
        with rpc.typed_errors():
            call = self.batches.ReadBatchResults(request, timeout=SECONDS)
            return [answer.result async for answer in call]

    async def set_tenant(
        self, tenant: str = "default", request_id: str = "", **limits: Any
    ) -> tenant_pb.Tenant:
        request = tenant_pb.SetTenantRequest(
            request_id=request_id, tenant=tenant, limits=tenant_pb.TenantLimits(**limits)
        )
        with rpc.typed_errors():
            answer: tenant_pb.SetTenantResponse = await self.tenants.SetTenant(
                request, timeout=SECONDS, wait_for_ready=True
            )
        return answer.tenant

    async def list_tenants(self) -> dict[str, tenant_pb.Tenant]:
        with rpc.typed_errors():
            answer: tenant_pb.ListTenantsResponse = await self.tenants.ListTenants(
                tenant_pb.ListTenantsRequest(), timeout=SECONDS, wait_for_ready=True
            )
        return {one.tenant: one for one in answer.tenants}

    async def cancel(self, request_id: str, attempt: str | None = None) -> None:
        with rpc.typed_errors():
            request = inference_pb.CancelRequest(request_id=request_id, attempt=attempt)
            await self.inference.Cancel(request, timeout=SECONDS)


class Cluster:
    """A control plane that can be restarted, and nodes that can be added and lost."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        defaults = {
            "lease_seconds": 1.0,
            "node_patience_seconds": 0.5,
            "drain_patience_seconds": 0.2,
            "stop_grace_seconds": 0.5,
        }
        self._port = ExitStack()  # the same after a restart
        address = f"127.0.0.1:{self._port.enter_context(held_port())}"
        place = {"directory": directory, "listen_address": address}
        self._settings: dict[str, Any] = {**place, **defaults, **settings}
        self.nodes: dict[str, FakeNode] = {}

    async def start(self) -> None:
        self._stack = AsyncExitStack()
        addresses = await self._stack.enter_async_context(running(ControlConfig(**self._settings)))
        self.address = addresses.callers
        self._channel = rpc.channel(self.address)
        self.caller = Caller(self._channel)

    async def stop_control(self) -> None:
        await self._stack.aclose()
        await self._channel.close(grace=None)

    async def restart_control(self) -> None:
        await self.stop_control()
        await self.start()
        await self.wait_for_nodes(len(self.nodes))

    async def add_node(self, node_id: str = "n1", zone: str = "", **sizes: int) -> FakeNode:
        node = self.nodes[node_id] = FakeNode(node_id, **sizes)
        node.zone = zone
        await node.start(self.address)
        await self.wait_for_nodes(len(self.nodes))
        return node

    async def lose_node(self, node_id: str) -> None:
        await self.nodes.pop(node_id).die()
        await self.wait_for_nodes(len(self.nodes))

    async def wait_for_nodes(self, count: int) -> None:
        async def there() -> bool:
            return len(await self.caller.nodes()) == count

        await assert_eventually(there)

    async def wait_for_instances(self, count: int, state: int = pb.INSTANCE_STATE_READY) -> None:
        async def there() -> bool:
            found = await self.caller.instances()
            return len(found) == count and all(one.state == state for one in found)

        await assert_eventually(there)

    async def stop(self) -> None:
        for node in self.nodes.values():
            await node.leave()
        await self.stop_control()
        for node in self.nodes.values():
            await node.die()
        self._port.close()


def stores_of(config: ControlConfig) -> tuple[SqliteStore, BatchStore]:
    """What a control plane keeps its state in."""
    return SqliteStore(config.state_path), BatchStore(config.batches_path)


@asynccontextmanager
async def cluster_of(directory: Path, **settings: Any) -> AsyncIterator[Cluster]:
    """A running control plane, without nodes at first."""
    cluster = Cluster(directory, **settings)
    await cluster.start()
    try:
        yield cluster
    finally:
        await cluster.stop()


def reason_of(error: BaseException | None) -> str | None:
    """The typed reason of an error."""
    return error.reason if isinstance(error, errors.SllmError) else None
