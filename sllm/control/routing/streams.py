"""Callers' streams: of one sample each, or of several."""

from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Protocol

from sllm import errors
from sllm.control.requests.tickets import Ticket
from sllm.control.routing.choices import Choices, Merger
from sllm.control.routing.router import Router
from sllm.control.tenants.names import new_id
from sllm.control.wire import choices, generations
from sllm.control.wire.generations import GenerateRequest, GenerateResponse


class Stream(Protocol):
    """What one caller reads."""

    def events(self) -> AsyncGenerator[GenerateResponse]:
        """Everything that the caller is to see.

        Raises:
            errors.SllmError: Why it has ended without `finished`.
        """
        ...

    def drop(self) -> None:
        """Stops whatever is still done for the caller. May be called again."""
        ...


class _Single:
    """The stream of one sample."""

    def __init__(self, router: Router, ticket: Ticket) -> None:
        self._router = router
        self._ticket = ticket

    def events(self) -> AsyncGenerator[GenerateResponse]:
        return self._router.events(self._ticket)

    def drop(self) -> None:
        self._router.drop(self._ticket)


class Streams:
    """Takes requests as callers send them, and gives them to the router one sample each."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._several: dict[str, Choices] = {}
        """Requests of several samples under way, by id."""

    async def open(self, request: GenerateRequest, remaining: float | None) -> Stream:
        """Takes a request, or refuses it; see Router.take."""
        self._router.check_tenant(request)
        n = choices.count(request)
        if not request.HasField("resume_from_sequence"):
            several = n > 1 or request.request_id in self._several
            also = choices.choice_ids(request.request_id) if several else []
            await self._router.vacant(request.request_id, *also)
        await self._router.settle(request)
        if n > 1:
            return self._take_several(request, remaining)
        if request.request_id in self._several:
            raise _in_use(request.request_id)
        return _Single(self._router, self._router.take(request, remaining))

    async def cancel(self, request_id: str, attempt: str | None = None) -> None:
        """Ends a request from outside its stream; see Router.cancel."""
        if several := self._several.get(request_id):
            several.cancel(errors.Cancelled(f"request {request_id} was cancelled"), attempt)
            return
        try:
            await self._router.cancel(request_id, attempt)
        except errors.RequestNotFound:
            if not await self._cancel_unread(request_id, attempt):
                raise

    def _take_several(self, request: GenerateRequest, remaining: float | None) -> Choices:
        request_id = request.request_id = request.request_id or new_id(request.deployment)
        sequence = generations.resumes_from(request)
        if self._router.serves(request_id) or (sequence is None and request_id in self._several):
            raise _in_use(request_id)
        self._router.screen(request, remaining)
        generations.settle_seed(request)
        had = choices.continuations(request)
        ones = dict(choices.requests(request, had))
        tickets = self._router.take_all(list(ones.values()), remaining) if ones else []
        ends = {choice: one.finished for choice, one in had.items() if one.HasField("finished")}
        taken = self._several[request_id] = Choices(
            dict(zip(ones, tickets, strict=True)),
            Merger(request.n, sequence or 0, ends),
            self._router.events,
            self._router.drop,
            lambda dropped: self._forget(request_id, dropped),
            resumes=sequence is not None,
        )
        return taken

    def _forget(self, request_id: str, dropped: Choices) -> None:
        if self._several.get(request_id) is dropped:
            del self._several[request_id]

    async def _cancel_unread(self, request_id: str, attempt: str | None) -> bool:
        """Ends the samples that go on without a reader; says whether there were any."""
        unread = [
            one for one in choices.choice_ids(request_id) if self._router.lingering.is_unread(one)
        ]
        for one in unread:
            with suppress(errors.RequestNotFound):
                await self._router.cancel(one, attempt)
        return bool(unread)


def _in_use(request_id: str) -> errors.RequestIdInUse:
    return errors.RequestIdInUse(f"request {request_id!r} is already under way")
