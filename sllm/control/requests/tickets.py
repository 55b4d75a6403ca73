"""One request in the router, from its being taken to its end."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sllm import errors
from sllm.clock import Clock
from sllm.control.cluster.instances import Instance
from sllm.control.cluster.usage import Running
from sllm.control.requests import spans
from sllm.control.requests.progress import Progress
from sllm.control.requests.queue import turn
from sllm.control.types.migrations import Departure
from sllm.control.types.receipts import Receipt, StartRecord
from sllm.control.types.status import Loading
from sllm.control.types.views import EndedRequest
from sllm.control.wire import carriage, generations
from sllm.control.wire.answers import AnswerCall
from sllm.control.wire.multiplex import GenerateCall
from sllm.control.wire.node_client import Node


@dataclass(frozen=True, slots=True)
class Assignment:
    """The instance that a request was given to."""

    instance: Instance
    node: Node
    start: StartRecord | None
    """How the instance came to be. None: before this control plane's time."""
    picked_at: float
    """Clock's seconds."""


class Ticket:
    """A request's place in the router. Changed by the orchestrator, followed by its own stream."""

    def __init__(
        self,
        request: generations.GenerateRequest,
        remaining: float | None,
        clock: Clock,
        *,
        step_seconds: float,
        position: int = 0,
        estimated_wait: float | None = None,
        stays: bool = False,
        background: bool = False,
        served_by: str = "",
    ) -> None:
        """`step_seconds` of waiting are worth one step of priority.

        `served_by` names the deployment whose instances serve it. Empty: the one that it names.
        """
        self._served_by = served_by or request.deployment
        self.request = request
        self.image_bytes = generations.image_bytes(request)
        """Held until it has ended, since it may have to go on elsewhere."""
        self.stays = stays
        """Whether it ends where it is, since there is nothing of it that could be migrated."""
        self.position = position
        """Requests of the same deployment that were ahead of it."""
        self.estimated_wait = estimated_wait
        """Seconds, when it was taken. None: nobody knew."""
        self.began_ns = time.time_ns()
        """The same moment as `taken_at`, since the epoch."""
        self.span = spans.begin(request.deployment, request.request_id, self.began_ns)
        self.taken_at = self.enqueued_at = clock.now()
        self.turn = turn(self.taken_at, request.priority, step_seconds)
        """Clock's seconds; the least is served first."""
        self.deadline = None if remaining is None else self.taken_at + remaining
        """Clock's seconds. None: the caller waits for as long as it takes."""
        self.assignment: Assignment | None = None
        self.dispatched_at = self.taken_at
        had = request.continuation
        told = generations.prompt_told(request)
        self.progress = Progress(had.token_ids, had.identity, prompt_told=told)
        self.departure: Departure | None = None
        """Where it has left, until its caller has been told where it has gone on."""
        self.first: tuple[Assignment, float] | None = None
        """The assignment that its first token came from, and when the node was called."""
        self.receipt: Receipt | None = None
        self.outcome = ""
        """"OK", or the reason of the error; empty while it is under way."""
        self.error: errors.SllmError | None = None
        """Why it was ended from outside its stream."""
        self.background = background
        """Whether nobody waits for it: it gives way to others."""
        self.avoids: set[str] = set()
        """Instances that could not load its adapter."""
        self.gave_way = False
        """Whether it was ended for them, and may be begun again."""
        self.reattached = False
        """Whether its generation went on without its caller, so that its prompt was computed."""
        self._clock = clock
        self._call: GenerateCall | AnswerCall[Any] | None = None
        self._carriage = carriage.current()
        self._uncarried = False
        self._known_to_nodes = False
        """Whether any node was ever called for it."""
        self._loading: Loading | None = None
        self._changed = asyncio.Event()
        self.zone = generations.zone(request)
        """Where its caller is. Empty: it does not say."""
        self.prefixes = tuple(request.prefixes.names)
        """Names of what its prompt begins with, the shortest first."""
        self.linger = generations.linger(request)
        """Seconds for which it is to go on without its caller."""
        self.resumes_from = generations.resumes_from(request)
        """Where its caller reads on. None: it is new."""
        self._sequence = self.resumes_from or 0

    @property
    def request_id(self) -> str:
        """Unique among the requests under way."""
        return self.request.request_id

    @property
    def deployment(self) -> str:
        """Name of the deployment whose instances serve it."""
        return self._served_by

    @property
    def named(self) -> str:
        """Name of the deployment that it is for: that of an adapter, or of what serves it."""
        return self.request.deployment

    @property
    def carried_from(self) -> str:
        """The instance that another control plane reads it from, where leaders have changed."""
        return self._carriage.instance_id if self._carriage else ""

    @property
    def adapter(self) -> str:
        """Name of the adapter over it that it is for. Empty: none."""
        return self.request.adapter.deployment

    @property
    def keep_alive(self) -> float | None:
        """Seconds that its instance stays at least. None: as its policy says."""
        return generations.keep_alive(self.request)

    def running(self) -> Running:
        """What migrating it would have to carry."""
        generated = len(self.progress.token_ids)
        expected = max(0, self.request.max_tokens - generated)
        return Running(self.request_id, self.prompt_tokens + generated, expected)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of its prompt, which nodes tell of where it is text; 0 until they have."""
        return len(self.progress.prompt) or len(self.request.token_ids.ids)

    def remaining(self) -> float | None:
        """Seconds until the caller's deadline; None: there is none."""
        return None if self.deadline is None else self.deadline - self._clock.now()

    def stamp(self, event: generations.GenerateResponse) -> generations.GenerateResponse:
        """Gives an event the next number of the caller's stream."""
        event.sequence = self._sequence
        self._sequence += 1
        return event

    # --- what the orchestrator tells it -------------------------------------------------------

    def show(self, loading: Loading) -> None:
        """Has the caller told how far the start is; a slow caller skips steps."""
        self._loading = loading
        self._changed.set()

    def assign(self, assignment: Assignment) -> None:
        """Gives it to an instance."""
        self.assignment = assignment
        self._changed.set()

    def fail(self, error: errors.SllmError) -> None:
        """Ends it, wherever it is, with `error`, which may end others as well."""
        if self.error is None:
            self.error = error.for_one()
        self._changed.set()
        if self._call:
            self._call.hang_up(self.error)

    def give_way(self) -> None:
        """Ends it where it is, because others need its slot or its instance's room."""
        self.gave_way = self.error is None
        self.fail(errors.NoCapacity("it has given way to requests that somebody waits for"))

    def abandon(self) -> None:
        """Ends it without a word: its caller is gone."""
        self.fail(errors.Cancelled("the caller has left"))

    @property
    def opened(self) -> bool:
        """Whether a node has been called for it."""
        return self._call is not None

    # --- what its stream does -----------------------------------------------------------------

    async def news(self) -> Loading | None:
        """How far the start is, or None once it has been given to an instance.

        Raises:
            errors.SllmError: Why it was ended.
            errors.DeadlineExceeded: Its deadline has passed.
        """
        try:
            async with asyncio.timeout(self.remaining()):
                while not (self.error or self.assignment or self._loading):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError as error:
            raise errors.DeadlineExceeded(
                f"no instance of {self.deployment} was ready before the call's deadline"
            ) from error
        if self.error:
            raise self.error
        loading, self._loading = self._loading, None
        return None if self.assignment else loading

    def open(self, assignment: Assignment, trace: Mapping[str, str]) -> GenerateCall:
        """Calls the instance's node."""
        self.hang_up()
        self._known_to_nodes = True
        self.dispatched_at = self._clock.now()
        self.request.instance_id = assignment.instance.instance_id
        carried = None if self._uncarried else self._carriage
        if self._carriage and carried is None:
            self._carriage.carries = False
        call = assignment.node.generate(self.request, self.remaining(), trace, carried)
        self._call = call
        return call

    def uncarry(self) -> bool:
        """Has this control plane call the node itself, if only another one has not reached it.

        It does so until the request is served elsewhere.
        """
        if self._carriage is None or self._uncarried or not self._carriage.unreached or self.error:
            return False
        self._uncarried = True
        self._continue()
        return True

    def follow(self, call: AnswerCall[Any]) -> None:
        """Has a call of its instance's node, which answers it at once, end when it is ended."""
        self.hang_up()
        self.dispatched_at = self._clock.now()
        self._call = call

    def hang_up(self) -> None:
        """Ends the call of the node, which stops the generation; one that has ended is no error."""
        if self._call:
            self._call.hang_up()
            self._call = None

    def put_back(self) -> None:
        """Takes it away from its instance, for another one."""
        self.hang_up()
        self.move_on()

    def ended(self, outcome: str) -> EndedRequest:
        """What is told of it to those who watch the cluster."""
        seconds = self._clock.now() - self.taken_at
        return EndedRequest(
            request_id=self.request_id,
            deployment=self.deployment,
            ended_at=self.began_ns / 1e9 + seconds,
            seconds=seconds,
            outcome=outcome,
            generated_tokens=len(self.progress.token_ids),
            receipt=self.receipt,
            adapter=self.adapter,
            adapter_identity=self.request.adapter.identity,
        )

    def move_on(self) -> None:
        """Readies it for another instance, which goes on after the tokens that were relayed.

        Also after none: a node that knows it refuses a request of its id that begins.
        """
        self.assignment = None
        self._loading = None
        self._uncarried = False
        self.enqueued_at = self._clock.now()
        self._continue()

    def _continue(self) -> None:
        """Has the next call of a node go on after the tokens that were relayed."""
        if self._known_to_nodes:
            done = self.progress
            generations.go_on(self.request, done.prompt, done.token_ids, done.identity)
