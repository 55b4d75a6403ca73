"""Takes requests, and knows each until it has ended."""

import asyncio
import copy
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Final

from sllm import errors
from sllm.clock import Clock
from sllm.control import metrics
from sllm.control.config import ControlConfig
from sllm.control.orchestration.dispatcher import Dispatcher
from sllm.control.requests import spans
from sllm.control.requests.tickets import Ticket
from sllm.control.routing import admission
from sllm.control.routing.entrance import Entrance
from sllm.control.routing.images import MAX_WAITING, ImageChecks
from sllm.control.routing.lingering import Lingering
from sllm.control.routing.relay import Relay
from sllm.control.routing.wait_estimates import WaitEstimates
from sllm.control.state import tenancy
from sllm.control.state.state import State
from sllm.control.tenants.names import new_id
from sllm.control.wire import choices, deployments, generations, prefixes
from sllm.control.wire.chats import take_template
from sllm.embedding.purpose import Task
from sllm.structured_output.checker import Checker

_LOOK_SECONDS: Final = 0.05
"""Between two looks for a request that is to end."""
_LEAVING_SECONDS: Final = 0.3
_LEAVING_LOOK_SECONDS: Final = 0.005
_GOING_DOWN: Final = "the control plane is going down; try again"


class Router:
    """The streams between callers and nodes."""

    def __init__(
        self,
        state: State,
        dispatcher: Dispatcher,
        wait_estimates: WaitEstimates,
        clock: Clock,
        config: ControlConfig,
    ) -> None:
        self._state = state
        self._dispatcher = dispatcher
        self._clock = clock
        self._config = config
        self._entrance = Entrance(state, wait_estimates, clock, config)
        self._relay = Relay(state, dispatcher, clock)
        self._forms = Checker()
        self._images = ImageChecks(partial(tenancy.check_looking_share, state, MAX_WAITING))
        self.lingering = Lingering(dispatcher, clock, config.lease_seconds)
        self._closing = False

    def take(
        self,
        request: generations.GenerateRequest,
        remaining: float | None,
        *,
        background: bool = False,
    ) -> Ticket:
        """Puts a request into the queue, or refuses it at once.

        Args:
            request: As the caller sent it; from here on it is the router's.
            remaining: Seconds until the caller's deadline. None: there is none.
            background: Whether nobody waits for it: it gets what others leave, for as long as
                they leave it.

        Raises:
            errors.SllmError: Why the request is refused.
        """
        self.screen(request, remaining)
        (ticket,) = self.take_all([request], remaining, background=background)
        return ticket

    def screen(self, request: generations.GenerateRequest, remaining: float | None) -> None:
        """Refuses a request that nothing could serve, before a copy of it is made.

        Raises:
            errors.SllmError: Why.
        """
        if self._closing:
            raise errors.ShuttingDown(_GOING_DOWN)
        if remaining is not None and remaining <= 0:
            raise errors.DeadlineExceeded("the call's deadline has passed already")
        self._check_fields(request)

    def take_all(
        self,
        requests: Sequence[generations.GenerateRequest],
        remaining: float | None,
        *,
        background: bool = False,
    ) -> list[Ticket]:
        """Puts samples of one request, which was screened, into the queue, or none of them.

        Raises:
            errors.SllmError: Why they are refused.
        """
        deployment = self._state.serving(requests[0].deployment)
        for request in requests:
            generations.check_size(request, deployment)  # each has a continuation of its own
        known = sum([self._take_over(request) for request in requests])
        for request in requests:
            self._settle_adapter(request)
        prefixes.settle_prefixes(requests, deployment.model.identity)
        tickets = [self._ticket(request, remaining, background) for request in requests]
        if not background:
            self._entrance.admit(tickets, len(tickets) - known)
        for ticket in tickets:
            self._state.tickets[ticket.request_id] = ticket
            self._state.tenants.began(ticket.named, background=background)
        for ticket in tickets:
            if ticket.resumes_from is None:
                self._dispatcher.enqueue(ticket)
        return tickets

    def check_tenant(self, request: generations.GenerateRequest) -> None:
        """Refuses a request whose tenant has all that it may have, before anything is done for it.

        Raises:
            errors.TenantLimit: Names the bound.
        """
        several = choices.choice_ids(request.request_id) if request.n > 1 else ()
        ids = (request.request_id, *several)
        resumes = generations.resumes_from(request) is not None
        if not any(self.serves(one) or (resumes and self.lingering.may_go_on(one)) for one in ids):
            tenancy.check_requests(self._state, request.deployment, self._clock.now())

    def serves(self, request_id: str) -> bool:
        """Whether a request of this id is under way."""
        return request_id in self._state.tickets

    async def vacant(self, *request_ids: str) -> None:
        """Returns once ids may be used again: their caller has left, and their nodes are told.

        That a caller has left may be known only a moment after its next call has come. If it has
        not left by then, its request is still under way.
        """
        settled_at = self._clock.now() + _LEAVING_SECONDS
        while any(map(self.serves, request_ids)) and self._clock.now() < settled_at:
            await self._clock.sleep(_LEAVING_LOOK_SECONDS)
        for request_id in request_ids:
            await self._relay.ended(request_id)

    async def settle(
        self, request: generations.GenerateRequest, *, fetches_images: bool = True
    ) -> None:
        """Completes a request by what its deployment does with answers, and by what URLs lead to.

        Returns if its images are some, and the text that is asked for can have its form, or may
        have any.

        Args:
            request: as its caller sent it.
            fetches_images: whether URLs of images are followed, and not refused.

        Raises:
            errors.SllmError: Why the request is refused.
        """
        if self._closing:
            raise errors.ShuttingDown(_GOING_DOWN)
        if request.deployment in self._state.deployments:
            deployment = self._state.serving(request.deployment)
            take_template(request, deployment)
            generations.settle_parsing(request, deployment)
            await self._images.settle(request, deployment, fetches=fetches_images)
        if form := generations.form(request):
            generations.check_size(request, self._state.serving(request.deployment))
            await self._forms.check(form)

    async def check(self, request: generations.GenerateRequest) -> None:
        """Looks at a request that is to be taken later. Changes nothing.

        Raises:
            errors.SllmError: Why it would be refused.
        """
        looked_at = copy.deepcopy(request)
        self._check_fields(looked_at)
        await self.settle(looked_at, fetches_images=False)

    async def events(self, ticket: Ticket) -> AsyncGenerator[generations.GenerateResponse]:
        """The caller's stream: `queued` first, `finished` last.

        Raises:
            errors.SllmError: Why the request has ended without `finished`.
        """
        try:
            if ticket.resumes_from is None:
                yield ticket.stamp(generations.queued_event(ticket.position, ticket.estimated_wait))
            else:
                await self.lingering.reattach(ticket)
            async with aclosing(self._relay.events(ticket)) as events:
                async for event in events:
                    yield event
        except errors.SllmError as error:
            ticket.outcome = error.reason
            raise
        finally:
            self.drop(ticket)

    async def cancel(self, request_id: str, attempt: str | None = None) -> None:
        """Ends a request from outside its stream, also one that goes on without a reader.

        `attempt`: that alone is to end. None: whichever reads it.

        Raises:
            errors.RequestNotFound: No such request is under way, or another attempt reads it.
            errors.SllmError: Its node cannot be told.
        """
        told_by = self._clock.now() + _LEAVING_SECONDS  # nodes tell of what nobody reads
        while (ticket := self._state.tickets.get(request_id)) is None:
            if node := self._dispatcher.unread_on(request_id):
                return await node.cancel(request_id, attempt)
            if self._clock.now() >= told_by:
                raise errors.RequestNotFound(f"no request {request_id!r} is under way")
            await self._clock.sleep(_LOOK_SECONDS)
        generations.check_attempt(ticket.request, attempt)
        ticket.linger = 0.0  # it is not to go on
        ticket.fail(errors.Cancelled(f"request {request_id} was cancelled"))
        return None

    def close(self) -> None:
        """Ends all streams, and takes no new requests."""
        self._closing = True
        for ticket in list(self._state.tickets.values()):
            ticket.fail(errors.ShuttingDown(_GOING_DOWN))

    async def stop(self) -> None:
        """Leaves the nodes with what they do."""
        self._forms.close()
        await asyncio.to_thread(self._images.close)
        await self._relay.close()

    def drop(self, ticket: Ticket) -> None:
        """Forgets a request, and stops whatever is still done for it. May be called again."""
        if self._state.tickets.get(ticket.request_id) is not ticket:
            return
        del self._state.tickets[ticket.request_id]
        self._state.tenants.ended(ticket.named, background=ticket.background)
        self._state.line_of(ticket).remove(ticket)
        ticket.abandon()
        # After hanging up alone, a generation lingers on its node: as its caller wishes, or because
        # this control plane goes down, and callers read on after its restart.
        if ticket.linger and ticket.assignment and ticket.outcome != "OK":
            instance_id = ticket.assignment.instance.instance_id
            self.lingering.left(ticket.request_id, instance_id, ticket.linger)
        elif not (self._closing or ticket.linger or ticket.outcome == "OK"):
            self._relay.end(ticket)
        self._relay.release(ticket)
        outcome = "GAVE_WAY" if ticket.gave_way else ticket.outcome or "CANCELLED"
        labels = {"deployment": ticket.deployment, "adapter": ticket.adapter, "outcome": outcome}
        metrics.requests.add(1, labels)
        spans.end(ticket.span, outcome, ticket.receipt, ticket.began_ns)
        self._state.receipts.add(ticket.request_id, ticket.deployment, ticket.receipt)
        self._state.ended.append(ticket.ended(outcome))

    # --- taking -------------------------------------------------------------------------------

    def _check_fields(self, request: generations.GenerateRequest) -> None:
        deployment = self._state.serving(request.deployment)
        deployment.model.purpose.check_serves(Task.GENERATE, deployment.name)
        generations.check_size(request, deployment)
        admission.check_fields(generations.generation_ask(request))

    def _take_over(self, request: generations.GenerateRequest) -> bool:
        """Ends the stream that a caller had before who reads on; says whether there is one.

        Raises:
            errors.RequestIdInUse: The caller does not, and another request has the id.
        """
        former = self._state.tickets.get(request.request_id)
        resumes = generations.resumes_from(request) is not None
        if former and resumes:
            former.fail(errors.Cancelled(f"request {request.request_id} is read on elsewhere"))
            former.linger = former.linger or self._config.linger_seconds  # the new one takes over
            self.drop(former)
        elif former:
            raise errors.RequestIdInUse(f"request {request.request_id!r} is already under way")
        return resumes and (former is not None or self.lingering.may_go_on(request.request_id))

    def _ticket(
        self, request: generations.GenerateRequest, remaining: float | None, background: bool
    ) -> Ticket:
        request.request_id = request.request_id or new_id(request.deployment)
        request.background = background
        generations.settle_seed(request)
        serving = self._state.serving(request.deployment)
        ticket = Ticket(
            request,
            remaining,
            self._clock,
            step_seconds=self._config.priority_step_seconds,
            background=background,
            served_by=serving.name,
        )
        generations.set_linger(request, max(ticket.linger, self._config.linger_seconds))
        return ticket

    def _settle_adapter(self, request: generations.GenerateRequest) -> None:
        """Says what the adapter is that a request names, if it names one, for nodes to find it."""
        request.ClearField("adapter")
        named = self._state.deployment(request.deployment)
        if named.spec.base:
            request.adapter.CopyFrom(deployments.adapter_source(named))
