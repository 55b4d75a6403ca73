"""A control plane for tests: a real gRPC server that answers what it is told to."""

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from serverlessllm.v1 import batch_service_pb2 as batch_pb
from serverlessllm.v1 import cluster_service_pb2 as cluster_pb
from serverlessllm.v1 import deployment_service_pb2 as deployment_pb
from serverlessllm.v1 import embedding_service_pb2 as embedding_pb
from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1 import key_service_pb2 as key_pb
from serverlessllm.v1 import model_service_pb2 as model_pb
from serverlessllm.v1 import tenant_service_pb2 as tenant_pb

from sllm import errors, rpc
from sllm.client.sync import BackgroundLoop

SERVICES = (
    batch_pb.DESCRIPTOR.services_by_name["BatchService"],
    cluster_pb.DESCRIPTOR.services_by_name["ClusterService"],
    deployment_pb.DESCRIPTOR.services_by_name["DeploymentService"],
    embedding_pb.DESCRIPTOR.services_by_name["EmbeddingService"],
    inference_pb.DESCRIPTOR.services_by_name["InferenceService"],
    key_pb.DESCRIPTOR.services_by_name["KeyService"],
    model_pb.DESCRIPTOR.services_by_name["ModelService"],
    tenant_pb.DESCRIPTOR.services_by_name["TenantService"],
)


class Silence:
    """A step of a reply: nothing more comes until the caller goes."""


Step = Message | errors.SllmError | Silence


class FakeControl:
    """Serves the client's services on a free port, in a thread of its own."""

    def __init__(self) -> None:
        self.requests: dict[str, list[Any]] = defaultdict(list)
        """For each method, the requests that came."""
        self.metadata: dict[str, list[dict[str, str]]] = defaultdict(list)
        """For each method, the metadata of the calls."""
        self.abandoned: list[str] = []
        """Methods whose caller went before the end of the reply."""
        self.always: dict[str, Sequence[Step]] = {}
        """The answer to all calls of a method for which none is queued."""
        self._replies: dict[str, deque[Sequence[Step]]] = defaultdict(deque)
        self._loop = BackgroundLoop()
        self.address = self._loop.run(self._start())

    def reply(self, method: str, *steps: Step) -> None:
        """Queues the answer to a call of `method`: messages, then perhaps an error."""
        self._replies[method].append(steps)

    def stop(self) -> None:
        """Ends the server."""
        self._loop.run(self._server.stop(0))
        self._loop.stop()

    async def _start(self) -> str:
        self._server = rpc.Server()
        for service in SERVICES:
            self._server.grpc.add_generic_rpc_handlers((self._handler(service),))
        return f"127.0.0.1:{await self._server.start('127.0.0.1:0', SERVICES)}"

    def _handler(self, service: ServiceDescriptor) -> Any:
        handlers = {method.name: self._method(method) for method in service.methods}
        return grpc.method_handlers_generic_handler(service.full_name, handlers)

    def _method(self, method: MethodDescriptor) -> Any:
        if method.client_streaming:
            return grpc.stream_unary_rpc_method_handler(
                partial(self._hear, method.name),
                GetMessageClass(method.input_type).FromString,
                GetMessageClass(method.output_type).SerializeToString,
            )
        streams = method.server_streaming
        make: Any = (
            grpc.unary_stream_rpc_method_handler if streams else grpc.unary_unary_rpc_method_handler
        )
        return make(
            partial(self._play if streams else self._answer, method.name),
            GetMessageClass(method.input_type).FromString,
            GetMessageClass(method.output_type).SerializeToString,
        )

    async def _hear(self, method: str, messages: AsyncIterator[Any], context: Any) -> Any:
        """A stream of messages is one request: the list of them."""
        heard = [message async for message in messages]
        return await self._answer(method, heard, context)

    async def _answer(self, method: str, request: Any, context: Any) -> Any:
        (message,) = [message async for message in self._play(method, request, context)]
        return message

    async def _play(self, method: str, request: Any, context: Any) -> AsyncIterator[Any]:
        self.requests[method].append(request)
        self.metadata[method].append(dict(context.invocation_metadata()))
        try:
            queued = self._replies[method]
            for step in (
                queued.popleft() if queued or method not in self.always else self.always[method]
            ):
                if isinstance(step, errors.SllmError):
                    raise step
                if isinstance(step, Silence):
                    await asyncio.Event().wait()
                else:
                    yield step  # the caller may go while the message is still on its way
        except (asyncio.CancelledError, GeneratorExit):
            self.abandoned.append(method)
            raise
