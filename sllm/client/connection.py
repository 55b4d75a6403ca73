"""The way to one control plane: its channel and stubs, and what their failures are called."""

import asyncio
import json
import math
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Final, Protocol, TypeVar

import grpc
from serverlessllm.v1.batch_service_pb2_grpc import BatchServiceStub
from serverlessllm.v1.cluster_service_pb2_grpc import ClusterServiceStub
from serverlessllm.v1.deployment_service_pb2_grpc import DeploymentServiceStub
from serverlessllm.v1.embedding_service_pb2_grpc import EmbeddingServiceStub
from serverlessllm.v1.inference_service_pb2_grpc import InferenceServiceStub
from serverlessllm.v1.key_service_pb2_grpc import KeyServiceStub
from serverlessllm.v1.model_service_pb2_grpc import ModelServiceStub
from serverlessllm.v1.tenant_service_pb2_grpc import TenantServiceStub

from sllm import bounds, errors, rpc, sending, statuses
from sllm.client import credentials
from sllm.client.channels import Channels

PAGE_SIZE: Final = 1000
"""Entries of a listing that are asked for at once: the most that it gives."""
_SERVICE_CONFIG: Final = json.dumps(
    {
        "methodConfig": [
            {
                # All but SubmitBatch, CreateKey, whose secret the first answer alone has, and those
                # that instances answer. Those that change something carry a request id, or may be
                # done twice, so that the control plane recognises a repetition.
                "name": [
                    {"service": "serverlessllm.v1.DeploymentService"},
                    {"service": "serverlessllm.v1.ClusterService"},
                    {"service": "serverlessllm.v1.ModelService"},
                    {"service": "serverlessllm.v1.TenantService"},
                    {"service": "serverlessllm.v1.KeyService", "method": "ListKeys"},
                    {"service": "serverlessllm.v1.KeyService", "method": "RevokeKey"},
                    {"service": "serverlessllm.v1.InferenceService", "method": "Cancel"},
                    *(
                        {"service": "serverlessllm.v1.BatchService", "method": method}
                        for method in ("GetBatch", "ListBatches", "CancelBatch")
                    ),
                ],
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "1s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    }
)


class _Listing(Protocol):
    page_token: str


class _Page(Protocol):
    @property
    def next_page_token(self) -> str: ...


Request = TypeVar("Request")
Response = TypeVar("Response")
Listing = TypeVar("Listing", bound=_Listing)
Page = TypeVar("Page", bound=_Page)


class Connection:
    """A channel, made within the event loop that it is used in."""

    def __init__(
        self, address: str, call_timeout: float, dial: rpc.Dial = rpc.channel, key: str = ""
    ) -> None:
        """`address` is one, or several with commas; `dial` leads there, `key` says who calls."""
        self.address = address
        self._key = key
        self._call_timeout = call_timeout
        self._closed = False
        options = (*rpc.CHANNEL_OPTIONS, ("grpc.service_config", _SERVICE_CONFIG))
        self.addresses = tuple(address.split(","))
        """Of all control planes: another one may answer where one does not."""
        channels = [dial(one, options) for one in self.addresses]
        self._channel = Channels(channels) if len(channels) > 1 else channels[0]
        self.deployments = DeploymentServiceStub(self._channel)
        self.cluster = ClusterServiceStub(self._channel)
        self.inference = InferenceServiceStub(self._channel)
        self.keys = KeyServiceStub(self._channel)
        self.models = ModelServiceStub(self._channel)
        self.embedding = EmbeddingServiceStub(self._channel)
        self.batches = BatchServiceStub(self._channel)
        self.tenants = TenantServiceStub(self._channel)

    def metadata(self) -> grpc.aio.Metadata:
        """What goes along with a call: the current trace, and who is calling."""
        return grpc.aio.Metadata(*rpc.trace_headers().items(), *credentials.headers(self._key))

    async def close(self) -> None:
        """Ends the calls under way, whose callers get `errors.Cancelled`, and the channel."""
        self._closed = True
        await self._channel.close(None)

    async def call(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        timeout: float | None = None,
    ) -> Response:
        """Calls a method and returns its response.

        Raises:
            errors.SllmError: As the server said, or because it could not be reached.
        """
        seconds = self._call_timeout if timeout is None else timeout
        return await self.wait(method, request, seconds)

    async def wait(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        timeout: float | None,
    ) -> Response:
        """The same for what may take as long as it takes, if `timeout` is None."""
        seconds = bounded(timeout)
        for _ in self.addresses[1:]:
            try:
                return await self._once(method, request, seconds)
            except errors.Unreachable:
                continue  # the next call goes elsewhere
        return await self._once(method, request, seconds)

    async def _once(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        seconds: float | None,
    ) -> Response:
        with self.typed_errors():
            return await method(request, timeout=seconds, metadata=self.metadata())

    async def pages(
        self, method: grpc.aio.UnaryUnaryMultiCallable[Listing, Page], request: Listing
    ) -> AsyncIterator[Page]:
        """All pages of a listing. Advances `request` from page to page."""
        while True:
            page = await self.call(method, request)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def stream(
        self,
        method: grpc.aio.UnaryStreamMultiCallable[Request, Response],
        request: Request,
        timeout: float | None = None,
    ) -> AsyncGenerator[Response]:
        """The messages of a streaming method; leaving it ends the call.

        Args:
            method: Which.
            request: What is asked.
            timeout: Seconds for all of it. None: as long as it takes.

        Raises:
            errors.SllmError: As the server said, or because it could not be reached.
        """
        call = method(request, timeout=bounded(timeout), metadata=self.metadata())
        try:
            with self.typed_errors():
                async for message in call:
                    yield message
        finally:
            call.cancel()

    async def send_all(
        self,
        method: grpc.aio.StreamUnaryMultiCallable[Request, Response],
        messages: AsyncIterator[Request],
        timeout: float | None = None,
    ) -> Response:
        """The answer to a stream of messages.

        Raises:
            errors.SllmError: As the server said, or because it could not be reached.
        """
        call = method(timeout=bounded(timeout), metadata=self.metadata())
        try:
            with self.typed_errors():
                async for message in messages:
                    if not await sending.write(call, message):
                        break  # the server has heard enough
                else:
                    await call.done_writing()
                return await call
        finally:
            call.cancel()

    @contextmanager
    def typed_errors(self) -> Iterator[None]:
        """Raises the typed error of any call that fails inside.

        Raises:
            errors.SllmError: Always the class of the reason that the server gave, where it did.
        """
        try:
            yield
        except grpc.aio.AioRpcError as error:
            raise self._typed(error) from error
        except asyncio.CancelledError as error:
            # A channel that is closed cancels the calls of tasks that nobody has cancelled.
            if not self._closed or task_is_cancelled():
                raise
            message = f"the client of {self.address} was closed meanwhile"
            raise errors.Cancelled(message) from error

    def _typed(self, error: grpc.aio.AioRpcError) -> errors.SllmError:
        typed = statuses.from_rpc_error(error)
        if not statuses.is_of_transport(error):
            return typed
        if isinstance(typed, errors.Unreachable):
            return errors.Unreachable(
                f"no connection to the control plane at {self.address}: {typed}. "
                "Is it running? `sllm up` starts one; SLLM_CONTROL names another"
            )
        if isinstance(typed, errors.DeadlineExceeded):
            return errors.DeadlineExceeded(
                f"no answer from the control plane at {self.address} before the deadline"
            )
        return typed


def bounded(timeout: float | None) -> float | None:
    """A timeout that gRPC can reckon with: one beyond its clock would pass at once. In seconds.

    Raises:
        errors.InvalidArgument: It is no number.
    """
    if timeout is None:
        return None
    if math.isnan(timeout):
        raise errors.InvalidArgument("a timeout is a number of seconds, not NaN")
    return min(timeout, bounds.LONGEST)


def task_is_cancelled() -> bool:
    """Whether the calling task itself was cancelled, and not only the call that it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
