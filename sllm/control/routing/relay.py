"""One request's stream: from the instances that serve it, one after the other, to its caller."""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from functools import partial

import structlog
from opentelemetry import trace

from sllm import errors, rpc
from sllm.clock import Clock
from sllm.control import metrics
from sllm.control.orchestration.dispatcher import Dispatcher
from sllm.control.requests.service_times import Served
from sllm.control.requests.tickets import Assignment, Ticket
from sllm.control.state.state import State
from sllm.control.tasks import Tasks
from sllm.control.types import receipts
from sllm.control.types.migrations import Departure, MigrationReason
from sllm.control.wire import generations
from sllm.control.wire.migrations import cache_move
from sllm.durations import to_seconds

log = structlog.get_logger()

ELSEWHERE = (
    errors.NodeLost,
    errors.WorkerDied,
    errors.InstanceNotFound,
    errors.ShuttingDown,
)
"""Failures of an instance or its node, after which another instance may serve the request."""
ADAPTER_ELSEWHERE = (
    errors.NoCapacity,
    errors.SourceNotFound,
    errors.SourceForbidden,
    errors.SourceUnavailable,
    errors.CheckpointCorrupt,
    errors.CheckpointUnreadable,
    errors.DeadlineExceeded,
)
"""What keeps an adapter from being loaded on one node, and may not on another."""


class Relay:
    """What happens to a request between its being queued and its end."""

    def __init__(self, state: State, dispatcher: Dispatcher, clock: Clock) -> None:
        self._state = state
        self._dispatcher = dispatcher
        self._clock = clock
        self._tasks = Tasks()
        self._ending: dict[str, asyncio.Task[None]] = {}
        """Requests that their nodes are told to end, by id."""

    async def events(self, ticket: Ticket) -> AsyncGenerator[generations.GenerateResponse]:
        """Everything after `queued`, up to `finished`.

        Raises:
            errors.SllmError: Why the request has ended without `finished`.
        """
        while not ticket.outcome:
            while loading := await ticket.news():
                yield ticket.stamp(generations.loading_event(loading))
            try:
                async with aclosing(self._served(ticket)) as served:
                    async for event in served:
                        yield ticket.stamp(event)
            except ELSEWHERE as error:
                if not ticket.uncarry():
                    self.fail_over(ticket, error)
            except ADAPTER_ELSEWHERE as error:
                self._load_elsewhere(ticket, error)
            except errors.Cancelled:
                self._give_way(ticket)
                raise

    def _load_elsewhere(self, ticket: Ticket, error: errors.SllmError) -> None:
        """Puts a request whose adapter an instance could not load back, for another instance.

        Raises:
            errors.SllmError: `error`, if no other instance may be tried.
        """
        assignment, left = ticket.assignment, ticket.remaining()
        if not (ticket.adapter and assignment) or ticket.error or (left is not None and left <= 0):
            raise error
        ticket.avoids.add(assignment.instance.instance_id)
        if ticket.request.no_failover or not self._dispatcher.has_other(ticket):
            raise error
        log.warning("control.adapter_elsewhere", request=ticket.request_id, error=error.message)
        self._put_back(ticket)

    def _give_way(self, ticket: Ticket) -> None:
        """Notes that a node has ended a request that nobody waits for: others need its adapter."""
        if ticket.background and ticket.adapter and not ticket.error:
            ticket.give_way()

    def release(self, ticket: Ticket) -> None:
        """Gives its slot back, if it has one."""
        assignment, ticket.assignment = ticket.assignment, None
        if assignment:
            self._dispatcher.released(ticket, assignment)

    def end(self, ticket: Ticket) -> None:
        """Has the node end what it still does for a request: hanging up alone lets it linger."""
        assignment = ticket.assignment
        if assignment and ticket.opened:
            request_id = ticket.request_id
            work = self._cancel(assignment, request_id)
            ending = self._tasks.spawn(work, name=f"cancel {request_id}")
            self._ending[request_id] = ending
            ending.add_done_callback(partial(self._ended, request_id))

    async def ended(self, request_id: str) -> None:
        """Returns once nodes have been told of the end of a request: its id may be used again."""
        if ending := self._ending.get(request_id):
            await asyncio.wait([ending])

    def _ended(self, request_id: str, ending: asyncio.Task[None]) -> None:
        if self._ending.get(request_id) is ending:
            del self._ending[request_id]

    async def close(self) -> None:
        """Leaves the nodes with what they do."""
        await self._tasks.close()

    async def _cancel(self, assignment: Assignment, request_id: str) -> None:
        try:
            await assignment.node.cancel(request_id)
        except errors.SllmError as error:
            log.warning("control.not_cancelled", request=request_id, error=str(error))

    async def _served(self, ticket: Ticket) -> AsyncGenerator[generations.GenerateResponse]:
        """What the caller is to see of the instance that the ticket was given to."""
        assignment = ticket.assignment
        assert assignment is not None
        async for event in ticket.open(assignment, _trace(ticket)):
            for seen in self._seen(ticket, assignment, event):
                yield seen
            if ticket.assignment is not assignment:
                return  # it has moved: what follows comes from elsewhere
        if not ticket.outcome:
            raise errors.WorkerDied(
                f"instance {assignment.instance.instance_id} left its stream without an end"
            )

    def _seen(
        self, ticket: Ticket, assignment: Assignment, event: generations.GenerateResponse
    ) -> list[generations.GenerateResponse]:
        """An event of the node as the caller is to see it."""
        arrival: list[generations.GenerateResponse] = []
        match event.WhichOneof("event"):
            case "queued":
                return []  # the caller has had the router's own
            case "started":
                ticket.progress.prompt = event.started.prompt_token_ids or ticket.progress.prompt
                ticket.progress.identity = event.started.identity
                return [] if ticket.departure else [event]  # its caller has had one, from before
            case "prompt_logprobs":
                return [event] if self._is_new(ticket, event.prompt_logprobs) else []
            case "tokens":
                arrival = self._arrive(ticket, assignment)
                self._count(ticket, assignment, event.tokens)
            case "moved":
                self._follow(ticket, assignment, event.moved)
                return []
            case "finished":
                arrival = self._arrive(ticket, assignment)
                self._finish(ticket, assignment, event.finished)
        return [*arrival, event]

    def _is_new(self, ticket: Ticket, told: generations.PromptLogprobs) -> bool:
        """Leaves out what the caller has of the prompt; says whether that leaves anything."""
        known = ticket.progress.known_of_prompt(told.first_index, len(told.tokens))
        told.first_index += known
        del told.tokens[:known]
        return bool(told.tokens)

    def _arrive(self, ticket: Ticket, assignment: Assignment) -> list[generations.GenerateResponse]:
        """Tells the caller, before anything else, that its generation has gone on elsewhere."""
        departure, ticket.departure = ticket.departure, None
        if departure is None:
            return []
        now = self._clock.now()
        pause = now - (ticket.progress.last_token_at or now)
        metrics.migrations.add(1, {"reason": departure.reason.name})
        return [generations.migrated_event(departure, assignment.instance, pause)]

    def _count(self, ticket: Ticket, assignment: Assignment, tokens: generations.Tokens) -> None:
        now, tenants = self._clock.now(), self._state.tenants
        if ticket.first is None:
            ticket.first = assignment, ticket.dispatched_at
            if not ticket.reattached:
                tenants.prompted(ticket.named, ticket.prompt_tokens, now)
        elif tokens.token_ids and tokens.HasField("duration"):
            seconds = to_seconds(tokens.duration) / len(tokens.token_ids)
            self._dispatcher.tuning.token(assignment.instance, seconds)
        ticket.progress.add(tokens.first_index, tokens.token_ids, now)
        tenants.generated(ticket.named, len(tokens.token_ids), now)
        self._state.slots.count_tokens(assignment.instance.instance_id, len(tokens.token_ids))

    def _finish(
        self, ticket: Ticket, assignment: Assignment, finished: generations.Finished
    ) -> None:
        """Completes what the caller is told, learns from it, and measures it."""
        ticket.outcome = "OK"
        # The receipt tells of the first token, and so of the instance that it came from.
        first, dispatched_at = ticket.first or (assignment, ticket.dispatched_at)
        stayed, told = first is assignment, finished.receipt
        phases = generations.phases(told.phases) if stayed else ()
        kept = generations.kept_prompt(told) if stayed else ()
        ticket.receipt = receipt = _receipt(ticket, first, dispatched_at, phases, kept)
        generations.fill_receipt(finished, receipt)
        if stayed and not (kept or _has_load(phases)):
            self._learn(ticket, finished, phases)
        _measure(ticket, receipt)

    def _follow(self, ticket: Ticket, assignment: Assignment, moved: generations.Moved) -> None:
        """Goes where the generation has gone. Its new place is taken before the old one is left."""
        # Not all tokens that moved have come: it is begun again from those that have.
        if moved.tokens != len(ticket.progress.token_ids):
            raise errors.WorkerDied(f"{moved.tokens} tokens have moved, not all have come")
        reason, cache = MigrationReason(moved.reason), cache_move(moved.cache)
        ticket.departure = Departure(assignment.instance, reason, cache)
        arrived = self._dispatcher.arrive(ticket, moved.instance_id)
        self.release(ticket)
        ticket.move_on()
        if arrived:
            ticket.assignment = arrived
        else:
            self._dispatcher.requeue(ticket)

    def _learn(
        self, ticket: Ticket, finished: generations.Finished, phases: Sequence[receipts.Phase]
    ) -> None:
        """Takes in how long a request took that stayed in one place, and waited for no weights."""
        for phase in phases:
            if phase.kind is receipts.PhaseKind.PREFILL:
                self._state.costs.observe_prefill(finished.usage.prompt_tokens, phase.duration)
        first_token_at = ticket.progress.first_token_at
        if first_token_at is None or ticket.background:
            return
        served = Served(
            first_token_seconds=first_token_at - ticket.dispatched_at,
            seconds=self._clock.now() - ticket.dispatched_at,
            generated_tokens=finished.usage.completion_tokens,
        )
        self._state.service_times.served(ticket.deployment, served)

    def fail_over(self, ticket: Ticket, error: errors.SllmError) -> None:
        """Puts a request back to the front of the queue, from where it goes on elsewhere.

        Raises:
            errors.SllmError: `error`, if no other instance may be tried; or why the request was
                ended meanwhile.
        """
        if ticket.error:  # which is ours, and says nothing of the instance
            raise ticket.error
        assignment = ticket.assignment
        if assignment:
            self._dispatcher.instance_failed(assignment.instance)
        if ticket.request.no_failover or not ticket.progress.fail():
            raise error
        # A caller without a token need not know. Of several failures the first place counts.
        if assignment and ticket.progress.token_ids and ticket.departure is None:
            ticket.departure = Departure(assignment.instance, MigrationReason.FAILOVER)
        self._put_back(ticket)

    def _put_back(self, ticket: Ticket) -> None:
        self.release(ticket)
        ticket.put_back()
        self._dispatcher.requeue(ticket)


def _receipt(
    ticket: Ticket,
    first: Assignment,
    dispatched_at: float,
    phases: Sequence[receipts.Phase],
    kept: tuple[receipts.KeptPrompt, ...],
) -> receipts.Receipt:
    """Of a request whose first token came from `first`, as its node tells of it.

    `dispatched_at`: when that was asked, in the clock's seconds.
    """
    timing = receipts.Timing(
        taken_at=ticket.taken_at,
        picked_at=first.picked_at,
        dispatched_at=dispatched_at,
        first_token_at=ticket.progress.first_token_at,
    )
    return receipts.assemble(
        timing,
        first.start,
        phases or receipts.prefill_of(timing),
        node_id=first.instance.node_id,
        instance_id=first.instance.instance_id,
        engine=first.instance.engine,
        deployment=ticket.deployment,
        adapter=ticket.adapter,
        kept_prompt=kept,
    )


def _measure(ticket: Ticket, receipt: receipts.Receipt) -> None:
    labels = {"deployment": ticket.deployment, "adapter": ticket.adapter}
    metrics.generated_tokens.add(len(ticket.progress.token_ids), labels)
    if ticket.background:
        return  # when its tokens come tells nothing: they are collected
    if (seconds := ticket.progress.time_per_token) is not None:
        metrics.time_per_token.record(seconds, {"deployment": ticket.deployment})
    metrics.time_to_first_token.record(receipt.time_to_first_token, {"cold": receipt.cold})


_LOADS = (receipts.PhaseKind.READ_SSD, receipts.PhaseKind.ATTACH)


def _has_load(phases: Iterable[receipts.Phase]) -> bool:
    """Whether a request has waited for weights, its base's or its adapter's: others need not."""
    return any(one.kind in _LOADS for one in phases)


def _trace(ticket: Ticket) -> Mapping[str, str]:
    """Headers that make the node's spans children of the request's."""
    return rpc.trace_headers(trace.set_span_in_context(ticket.span))
