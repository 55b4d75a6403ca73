"""Requests of Embed and Score: they wait as those of Generate do, and are answered at once."""

import uuid

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
from sllm.control.state.state import State
from sllm.control.types import receipts
from sllm.control.wire import encodings, generations
from sllm.control.wire.encodings import Answer, Method, Question


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
        ticket = self._take(request, remaining)
        try:
            return await self._answer(ticket, request, method)
        except errors.SllmError as error:
            ticket.outcome = error.reason
            raise
        finally:
            self._drop(ticket)

    def close(self) -> None:
        """Takes no new requests; those under way end with all others."""
        self._closing = True

    def _take(self, request: encodings.Request, remaining: float | None) -> Ticket:
        if self._closing:
            raise errors.ShuttingDown("the control plane is going down; try again")
        if remaining is not None and remaining <= 0:
            raise errors.DeadlineExceeded("the call's deadline has passed already")
        encodings.check(request, self._state.deployment(request.deployment))
        admission.check_priority(request.priority)
        queued = encodings.queued_as(request, uuid.uuid4().hex)
        generations.keep_alive(queued)
        step = self._config.priority_step_seconds
        ticket = Ticket(queued, remaining, self._clock, step_seconds=step, stays=True)
        estimate = self._wait_estimates.of(ticket)
        admission.check_queue(estimate, self._config)
        admission.check_deadline(estimate, remaining)
        self._state.tickets[ticket.request_id] = ticket
        self._dispatcher.enqueue(ticket)
        return ticket

    async def _answer(
        self, ticket: Ticket, request: Question, method: Method[Question, Answer]
    ) -> Answer:
        while True:
            while await ticket.news():
                pass  # how far a start is: nobody is told meanwhile
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
        seconds = now - ticket.dispatched_at
        served = Served(first_token_seconds=seconds, seconds=seconds, generated_tokens=0)
        self._state.service_times.served(ticket.deployment, served)
        cold = {"cold": ticket.receipt.cold}
        metrics.time_to_first_token.record(ticket.receipt.time_to_first_token, cold)

    def _drop(self, ticket: Ticket) -> None:
        """Forgets a request, and ends what is still done for it."""
        del self._state.tickets[ticket.request_id]
        self._state.queue.remove(ticket)
        ticket.abandon()
        self._relay.release(ticket)
        outcome = ticket.outcome or "CANCELLED"
        metrics.requests.add(1, {"deployment": ticket.deployment, "outcome": outcome})
        spans.end(ticket.span, outcome, ticket.receipt, ticket.began_ns)
        self._state.receipts.add(ticket.request_id, ticket.deployment, ticket.receipt)
        self._state.ended.append(ticket.ended(outcome))
