"""BatchService: generations that nobody waits for."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from serverlessllm.v1 import batch_service_pb2 as pb
from serverlessllm.v1.batch_service_pb2_grpc import BatchServiceServicer

from sllm import bounds, errors
from sllm.control.access.principals import own
from sllm.control.api.pagination import page_of
from sllm.control.control_plane import ControlPlane
from sllm.control.types.batches import Batch
from sllm.control.wire import batches


class BatchServicer(BatchServiceServicer):
    """Each method parses, calls and translates."""

    def __init__(self, plane: ControlPlane) -> None:
        self._batches = plane.batches

    async def SubmitBatch(
        self, request_iterator: AsyncIterator[pb.SubmitBatchRequest], context: Any
    ) -> pb.SubmitBatchResponse:
        """Takes a batch, whole."""
        first = await anext(aiter(request_iterator), None)
        if first is None:
            raise errors.InvalidArgument("the first message of a batch is its header")
        requests = batches.requests(request_iterator)
        batch = await self._batches.submit(batches.head(first), requests)
        return pb.SubmitBatchResponse(batch=self._message(batch))

    async def GetBatch(self, request: pb.GetBatchRequest, context: Any) -> pb.GetBatchResponse:
        """Tells how far a batch is."""
        batch = self._batches.batch(request.batch_id)
        return pb.GetBatchResponse(batch=self._message(batch))

    async def ListBatches(
        self, request: pb.ListBatchesRequest, context: Any
    ) -> pb.ListBatchesResponse:
        """Tells how far all batches are, page by page."""
        known = own(self._batches.known)
        page = page_of(known, request.page_size, request.page_token)
        messages = [self._message(known[key]) for key in page.keys]
        return pb.ListBatchesResponse(batches=messages, next_page_token=page.next_token)

    async def ReadBatchResults(
        self, request: pb.ReadBatchResultsRequest, context: Any
    ) -> AsyncIterator[pb.ReadBatchResultsResponse]:
        """Tells what has come of a batch's requests."""
        first = bounds.count(request.from_number, "from_number")
        results = self._batches.results(request.batch_id, first, request.follow)
        async with aclosing(results) as outcomes:
            async for outcome in outcomes:
                yield batches.result(outcome)

    async def CancelBatch(
        self, request: pb.CancelBatchRequest, context: Any
    ) -> pb.CancelBatchResponse:
        """Ends a batch."""
        batch = await self._batches.cancel(request.batch_id)
        return pb.CancelBatchResponse(batch=self._message(batch))

    async def DeleteBatch(
        self, request: pb.DeleteBatchRequest, context: Any
    ) -> pb.DeleteBatchResponse:
        """Forgets a batch that has ended."""
        await self._batches.delete(request.batch_id)
        return pb.DeleteBatchResponse()

    def _message(self, batch: Batch) -> pb.Batch:
        return batches.message(batch, self._batches.kept_until(batch))
