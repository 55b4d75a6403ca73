"""Requests of Embed and Score: they wait as those of Generate do, and are answered at once."""

from collections.abc import Callable

from opentelemetry import trace

from sllm import errors, rpc
from sllm.clock import Clock
from sllm.control import metrics
from sllm.control.config import ControlConfig
from sllm.control.orchestration.dispatcher import Dispatcher
from sllm.control.requests import spans
from sllm.control.requests.service_times import Served
from sllm.control.requests.tickets import Assignment, Ticket
from sllm.control.routing import admission
from sllm.control.routing.relay import ELSEWHERE, Relay
from sllm.control.routing.wait_estimates import WaitEstimates
from sllm.control.state import tenancy
from sllm.control.state.state import State
from sllm.control.tenants.names import new_id
from sllm.control.types import receipts
from sllm.control.wire import encodings, generations
from sllm.control.wire.encodings import (
    Answer,
    EmbedRequest,
    EmbedResponse,
    Method,
    Question,
)


class GaveWay(Exception):
    """A request was ended for others that somebody waits for, and may be made again."""


class Encodings:
    """Belongs to the event loop.

    An instance that fails is no matter to its caller: nothing of a request is kept there, so that
    the next one is simply asked. For the same reason none is migrated.
    """

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
        self._wait_estimates = wait_estimates
        self._clock = clock
        self._config = config
        self._relay = Relay(state, dispatcher, clock)
        self._closing = False

    async def serve(
        self, request: Question, remaining: float | None, method: Method[Question, Answer]
    ) -> Answer:
        """The answer to a request; the caller's leaving ends it.

        Args:
            request: as the caller sent it; from here on it is ours.
            remaining: seconds until the caller's deadline. None: there is none.
            method: of nodes, that answers it.

        Raises:
            errors.SllmError: Why there is none.
        """
        return await self._serve(self._take(request, remaining), request, method)

    async def embed_behind_others(
        self, request: EmbedRequest, remaining: float, begun: Callable[[], None]
    ) -> EmbedResponse:
        """The same of vectors that nobody waits for: of what others leave, while they leave it.

        Args:
            request: of a batch.
            remaining: seconds until it fails.
            begun: called whenever an instance has been found for it.

        Raises:
            GaveWay: Others have come.
            errors.SllmError: Why there is no answer.
        """
        ticket = self._take(request, remaining, background=True)
        try:
            return await self._serve(ticket, request, lambda node: node.Embed, begun)
        except errors.SllmError as error:
            if ticket.gave_way:
                raise GaveWay from error
            raise

    def check(self, request: encodings.Request) -> None:
        """Looks at a request that is to be taken later. Changes nothing.

        Raises:
            errors.SllmError: Why it would be refused.
        """
        encodings.check(request, self._state.deployment(request.deployment))

    async def _serve(
        self,
        ticket: Ticket,
        request: Question,
        method: Method[Question, Answer],
        begun: Callable[[], None] = lambda: None,
    ) -> Answer:
        try:
            return await self._answer(ticket, request, method, begun)
        except errors.SllmError as error:
            ticket.outcome = error.reason
            raise
        finally:
            self._drop(ticket)

    def close(self) -> None:
        """Takes no new requests; those under way end with all others."""
        self._closing = True

    def _take(
        self, request: encodings.Request, remaining: float | None, *, background: bool = False
    ) -> Ticket:
        if self._closing:
            raise errors.ShuttingDown("the control plane is going down; try again")
        if remaining is not None and remaining <= 0:
            raise errors.DeadlineExceeded("the call's deadline has passed already")
        self.check(request)
        admission.check_priority(request.priority)
        queued = encodings.queued_as(request, new_id(request.deployment))
        generations.keep_alive(queued)
        step = self._config.priority_step_seconds
        ticket = Ticket(
            queued, remaining, self._clock, step_seconds=step, stays=True, background=background
        )
        if not background:
            self._admit(ticket, remaining)
        self._state.tickets[ticket.request_id] = ticket
        self._state.tenants.began(ticket.named, background=background)
        self._dispatcher.enqueue(ticket)
        return ticket

    def _admit(self, ticket: Ticket, remaining: float | None) -> None:
        estimate, now = self._wait_estimates.of(ticket), self._clock.now()
        tenancy.check_requests(self._state, ticket.named, now, to_wait=estimate.to_wait)
        admission.check_queue(estimate, self._config)
        tenancy.check_share(self._state, ticket.named, estimate.to_wait, self._config.max_queued)
        admission.check_deadline(estimate, remaining)

    async def _answer(
        self,
        ticket: Ticket,
        request: Question,
        method: Method[Question, Answer],
        begun: Callable[[], None],
    ) -> Answer:
        while True:
            while await ticket.news():
                pass  # how far a start is: nobody is told meanwhile
            begun()
            assignment = ticket.assignment
            assert assignment is not None
            try:
                answer = await self._ask(ticket, assignment, request, method)
            except ELSEWHERE as error:
                self._relay.fail_over(ticket, error)
            else:
                self._finish(ticket, assignment, answer)
                return answer

    async def _ask(
        self,
        ticket: Ticket,
        assignment: Assignment,
        request: Question,
        method: Method[Question, Answer],
    ) -> Answer:
        request.instance_id = assignment.instance.instance_id
        headers = rpc.trace_headers(trace.set_span_in_context(ticket.span))
        node = assignment.node
        call = node.encode(method(node.encoders), request, ticket.remaining(), headers)
        ticket.follow(call)
        return await call.answer()

    def _finish(self, ticket: Ticket, assignment: Assignment, answer: encodings.Response) -> None:
        """Tells where the time went, of which the answer counts as the first token."""
        ticket.outcome, now = "OK", self._clock.now()
        timing = receipts.Timing(ticket.taken_at, assignment.picked_at, ticket.dispatched_at, now)
        ticket.receipt = receipts.assemble(
            timing,
            assignment.start,
            receipts.prefill_of(timing),
            node_id=assignment.instance.node_id,
            instance_id=assignment.instance.instance_id,
            engine=assignment.instance.engine,
            deployment=ticket.deployment,
            adapter=ticket.adapter,
        )
        generations.fill_receipt(answer, ticket.receipt)
        self._state.tenants.prompted(ticket.named, encodings.prompt_tokens(answer), now)
        if ticket.background:
            return  # how long it has waited tells nothing of others
        seconds = now - ticket.dispatched_at
        served = Served(first_token_seconds=seconds, seconds=seconds, generated_tokens=0)
        self._state.service_times.served(ticket.deployment, served)
        cold = {"cold": ticket.receipt.cold}
        metrics.time_to_first_token.record(ticket.receipt.time_to_first_token, cold)

    def _drop(self, ticket: Ticket) -> None:
        """Forgets a request, and ends what is still done for it."""
        del self._state.tickets[ticket.request_id]
        self._state.tenants.ended(ticket.named, background=ticket.background)
        self._state.line_of(ticket).remove(ticket)
        ticket.abandon()
        self._relay.release(ticket)
        outcome = "GAVE_WAY" if ticket.gave_way else ticket.outcome or "CANCELLED"
        metrics.requests.add(1, {"deployment": ticket.deployment, "outcome": outcome})
        spans.end(ticket.span, outcome, ticket.receipt, ticket.began_ns)
        self._state.receipts.add(ticket.request_id, ticket.deployment, ticket.receipt)
        self._state.ended.append(ticket.ended(outcome))
