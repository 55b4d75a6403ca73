"""How a batch comes in: each of its requests is looked at, and stored, before the batch is one."""

import asyncio
import hashlib
import time
import uuid
from collections.abc import AsyncIterator
from typing import Final

import structlog

from sllm import errors
from sllm.control.batches.book import BatchBook
from sllm.control.config import ControlConfig
from sllm.control.routing.encodings import Encodings
from sllm.control.routing.router import Router
from sllm.control.tenants.names import own
from sllm.control.types.batches import Asks, Batch, BatchHead, Item
from sllm.control.wire import batches as wire

log = structlog.get_logger()

_SILENCE_SECONDS: Final = 60.0
_STAGED: Final = 256
_STAGED_BYTES: Final = 1 << 20
"""Requests, and their bytes, that are stored together."""


class Submission:
    """One batch on its way in."""

    def __init__(
        self,
        head: BatchHead,
        book: BatchBook,
        router: Router,
        encodings: Encodings,
        config: ControlConfig,
    ) -> None:
        self._head = head
        self._book = book
        self._router = router
        self._encodings = encodings
        self._config = config
        self._run_id = uuid.uuid4().hex
        self._deployment = ""
        """Of its first request, which tells whose it is."""
        self._digest = hashlib.sha256(repr(head.time_limit).encode())
        self._ids: set[str] = set()
        self._size = 0
        self._unstored: list[Item] = []
        self._unstored_bytes = 0

    async def take(self, requests: AsyncIterator[wire.Batched]) -> Batch:
        """Takes all of them, or none.

        Raises:
            errors.SllmError: Why one of them is refused, and with it the batch.
            errors.InvalidArgument: There are none, or too many.
            errors.RequestIdInUse: There is a batch of this id, with other content.
            errors.QueueFull: There are as many batches, or bytes of them, as may be.
        """
        try:
            self._check_count()
            async for request in _in_time(requests):
                await self._add(request)
            if not self._ids:
                raise errors.InvalidArgument("a batch has at least one request")
            await self._store()
            return await self._book.add(self._batch())
        except BaseException:
            await self._unstage()
            raise

    async def _unstage(self) -> None:
        """What cannot be removed now is when the store is opened next; the caller is told why."""
        try:
            await self._book.unstage(self._run_id)
        except errors.Unavailable as error:
            log.warning("control.batch_not_unstaged", error=error.message)

    def _check_count(self) -> None:
        most = self._config.max_batches
        if len(self._book.batches) >= most and self._head.batch_id not in self._book.batches:
            raise errors.QueueFull(
                f"{most} batches are kept, as many as may; delete some that have ended, or cancel "
                "some"
            )

    def made(self, batch: Batch) -> bool:
        """Whether a batch is the one that was taken here, and was not there before."""
        return batch.run_id == self._run_id

    async def _add(self, request: wire.Batched) -> None:
        number = len(self._ids)
        asks, deployment = wire.asks(request), wire.deployment(request)
        self._deployment = self._deployment or deployment
        request_id = request.request_id or str(number)
        try:
            content = wire.content(request)
            self._count(request_id, len(content))
            await self._check(request)
        except errors.SllmError as error:
            raise _of_request(error, request_id, number) from error
        kind = b"" if asks is Asks.GENERATION else asks.name.encode()
        self._digest.update(kind + len(content).to_bytes(8) + content)
        stored = wire.settled(request)
        item = Item(self._run_id, number, request_id, deployment, stored, asks)
        self._unstored.append(item)
        self._unstored_bytes += len(stored)
        if len(self._unstored) >= _STAGED or self._unstored_bytes >= _STAGED_BYTES:
            await self._store()

    async def _check(self, request: wire.Batched) -> None:
        if isinstance(request, wire.GenerateRequest):
            await self._router.check(request)
        else:
            self._encodings.check(request.request)

    def _count(self, request_id: str, size: int) -> None:
        if request_id in self._ids:
            raise errors.InvalidArgument(
                "two requests of a batch have this request_id, or it is the number of one that has "
                "none; give all of them one, or none"
            )
        self._ids.add(request_id)
        self._size += size
        config = self._config
        if len(self._ids) > config.max_batch_requests or self._size > config.max_batch_bytes:
            raise errors.InvalidArgument(
                f"a batch may have {config.max_batch_requests} requests of {config.max_batch_bytes}"
                " bytes together; make several of it"
            )

    async def _store(self) -> None:
        items, self._unstored, self._unstored_bytes = self._unstored, [], 0
        await self._book.stage(items)

    def _batch(self) -> Batch:
        now = time.time()
        return Batch(
            batch_id=self._head.batch_id or own(self._deployment, self._run_id),
            run_id=self._run_id,
            fingerprint=self._digest.hexdigest(),
            requests=len(self._ids),
            created_at=now,
            expires_at=now + self._head.time_limit,
        )


async def _in_time(
    requests: AsyncIterator[wire.Batched],
) -> AsyncIterator[wire.Batched]:
    """Those of a caller that does not stand still.

    Raises:
        errors.DeadlineExceeded: It does.
    """
    while True:
        try:
            request = await asyncio.wait_for(anext(requests, None), _SILENCE_SECONDS)
        except TimeoutError as error:
            raise errors.DeadlineExceeded(
                f"nothing more of the batch came for {_SILENCE_SECONDS:g} s; submit it again"
            ) from error
        if request is None:
            return
        yield request


def _of_request(error: errors.SllmError, request_id: str, number: int) -> errors.SllmError:
    """The same error, which says whose it is."""
    return type(error)(
        f"request {request_id!r} (number {number}) of the batch: {error.message}",
        metadata={**error.metadata, "request_id": request_id, "number": str(number)},
        retry_after=error.retry_after,
    )
