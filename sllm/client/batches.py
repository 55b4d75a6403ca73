"""The client as those use it who wait for nothing: many requests, and what has come of them."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterable, Iterable
from contextlib import aclosing
from typing import Final

from serverlessllm.v1 import batch_service_pb2 as pb

from sllm import errors
from sllm.client.base import BaseClient
from sllm.client.connection import PAGE_SIZE
from sllm.client.types.batches import Batch, BatchRequest, BatchResult
from sllm.client.wire import batches as messages
from sllm.client.wire.requests import fitting

_RETRY_SECONDS: Final = 0.2


class BatchClient(BaseClient):
    """The part of a client that has batches done."""

    async def submit_batch(
        self,
        requests: Iterable[BatchRequest] | AsyncIterable[BatchRequest],
        *,
        batch_id: str | None = None,
        time_limit: float | None = None,
        timeout: float | None = None,
    ) -> Batch:
        """Has many requests done that nobody waits for, with what other requests leave.

        All of them are taken or, if one is refused, none. They go on without the caller.

        Args:
            requests: arguments of `generate`, or of `embed` (those that have `inputs`), as many
                times as there are requests.
            batch_id: names the batch. One of the same content may be submitted again, as when it
                is not known whether it arrived: it is done once. None: one is made.
            time_limit: seconds after which those fail that have not ended. None: a day.
            timeout: seconds for submitting. None: as long as it takes.

        Raises:
            errors.InvalidArgument: There are none, or too many, or an argument is none of theirs.
            errors.RequestIdInUse: There is another batch of this id.
            errors.SllmError: Why one of them was refused: `metadata["request_id"]` says which.

        Example:
            prompts = ["Once upon a time", "The for statement"]
            batch = client.submit_batch(
                {"deployment": "tiny", "prompt": one, "max_tokens": 32} for one in prompts
            )
            for done in client.batch_results(batch.batch_id):
                print(done.request_id, done.result.text if done.result else done.error)
        """
        sent = messages.submission(batch_id or uuid.uuid4().hex, time_limit, requests)
        answer = await self._connection.send_all(
            self._connection.batches.SubmitBatch, sent, timeout
        )
        return messages.batch(answer.batch)

    async def batch(self, batch_id: str) -> Batch:
        """How far a batch is.

        Raises:
            errors.BatchNotFound: There is none of this id.
        """
        with fitting():
            request = pb.GetBatchRequest(batch_id=batch_id)
        answer = await self._connection.call(self._connection.batches.GetBatch, request)
        return messages.batch(answer.batch)

    async def batches(self) -> list[Batch]:
        """All batches that are not forgotten, in order of their ids."""
        request = pb.ListBatchesRequest(page_size=PAGE_SIZE)
        pages = self._connection.pages(self._connection.batches.ListBatches, request)
        return [messages.batch(one) async for page in pages for one in page.batches]

    async def batch_results(
        self, batch_id: str, *, first: int = 0, follow: bool = True, reattach: float = 30.0
    ) -> AsyncGenerator[BatchResult]:
        """What has come of a batch's requests, in the order in which they have ended.

        Args:
            batch_id: which.
            first: the number of the first result to give.
            follow: whether to go on until all of them have ended.
            reattach: seconds for which a control plane that is lost is waited for, to read on.

        Raises:
            errors.BatchNotFound: There is none of this id.
        """
        patience: float | None = None
        while True:
            try:
                async with aclosing(self._results(batch_id, first, follow)) as results:
                    async for result in results:
                        first, patience = result.number + 1, None
                        yield result
                return
            except (errors.Unreachable, errors.ShuttingDown):
                patience = patience or time.monotonic() + reattach
                if time.monotonic() >= patience:
                    raise
            await asyncio.sleep(_RETRY_SECONDS)

    async def _results(
        self, batch_id: str, first: int, follow: bool
    ) -> AsyncGenerator[BatchResult]:
        with fitting():
            request = pb.ReadBatchResultsRequest(
                batch_id=batch_id, from_number=first, follow=follow
            )
        results = self._connection.stream(self._connection.batches.ReadBatchResults, request)
        async with aclosing(results) as answers:
            async for answer in answers:
                yield messages.result(answer.result)

    async def cancel_batch(self, batch_id: str) -> Batch:
        """Ends what is under way of a batch, and what waits; what has ended can be read.

        Raises:
            errors.BatchNotFound: There is none of this id.
        """
        with fitting():
            request = pb.CancelBatchRequest(batch_id=batch_id)
        answer = await self._connection.call(self._connection.batches.CancelBatch, request)
        return messages.batch(answer.batch)

    async def delete_batch(self, batch_id: str) -> None:
        """Forgets a batch that has ended, with its results.

        Raises:
            errors.BatchNotFound: There is none of this id.
            errors.BatchUnderWay: It has not ended.
        """
        with fitting():
            request = pb.DeleteBatchRequest(batch_id=batch_id)
        await self._connection.call(self._connection.batches.DeleteBatch, request)
