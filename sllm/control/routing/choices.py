"""Several samples of one prompt as one stream, whose events say which they are about."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing

from sllm import errors
from sllm.control.requests.tickets import Ticket
from sllm.control.wire import choices, generations
from sllm.control.wire.generations import Finished, GenerateResponse


class Merger:
    """Makes one stream of the events of all choices, whatever their order. Pure."""

    def __init__(self, n: int, sequence: int, ends: Mapping[int, Finished]) -> None:
        """`ends`: of the choices whose end the caller has had. `sequence`: what comes next."""
        self._n = n
        self._sequence = sequence
        self._ends = dict(ends)
        self._loading: int | None = None
        """The choice whose start is told of: one stands for all."""
        self._prompt_told = False

    @property
    def complete(self) -> bool:
        """Whether all have ended."""
        return len(self._ends) == self._n

    def take(self, choice: int, event: GenerateResponse) -> GenerateResponse | None:
        """An event of a choice as the caller is to see it. None: it is not."""
        match event.WhichOneof("event"):
            case "queued":
                return None  # one was told for all of them
            case "loading":
                self._loading = choice if self._loading is None else self._loading
                return self.stamp(event) if choice == self._loading else None
            case "started" if event.started.prompt_token_ids:
                if self._prompt_told:
                    event.started.ClearField("prompt_token_ids")
                self._prompt_told = True
            case "finished":
                self._ends[choice] = event.finished
                event = choices.finished_event(event.finished)
        event.choice = choice
        return self.stamp(event)

    def end(self) -> GenerateResponse:
        """The last event, once all have ended."""
        return self.stamp(choices.together(self._ends))

    def stamp(self, event: GenerateResponse) -> GenerateResponse:
        """Gives an event the next number of the caller's stream."""
        event.sequence = self._sequence
        self._sequence += 1
        return event


class Choices:
    """The samples that one caller has asked for: each a request of its own, with its own ticket."""

    def __init__(
        self,
        tickets: Mapping[int, Ticket],
        merger: Merger,
        serve: Callable[[Ticket], AsyncGenerator[GenerateResponse]],
        drop: Callable[[Ticket], None],
        dropped: Callable[["Choices"], None],
        *,
        resumes: bool,
    ) -> None:
        """Takes over those that have not ended.

        Args:
            tickets: Of each, by its number.
            merger: For their events.
            serve: The events of one of them.
            drop: Stops what is still done for one of them.
            dropped: Told when nothing is done for any of them any more.
            resumes: Whether the caller has had the beginning of the stream.
        """
        self._tickets = tickets
        self._merger = merger
        self._serve = serve
        self._drop = drop
        self._dropped = dropped
        self._resumes = resumes
        # Of one event: who is ahead of the caller waits, and what comes meanwhile comes together.
        self._arrived: asyncio.Queue[tuple[int, GenerateResponse | Exception]] = asyncio.Queue(1)

    async def events(self) -> AsyncGenerator[GenerateResponse]:
        """The caller's stream: `queued` first, `finished` last.

        Raises:
            errors.SllmError: Why one of them has ended without `finished`, and the others with it.
        """
        reading = [
            asyncio.create_task(self._read(choice, ticket), name=f"choice {ticket.request_id}")
            for choice, ticket in self._tickets.items()
        ]
        try:
            if not self._resumes:
                first = self._tickets[0]
                queued = generations.queued_event(first.position, first.estimated_wait)
                yield self._merger.stamp(queued)
            while not self._merger.complete:
                choice, found = await self._arrived.get()
                if isinstance(found, Exception):
                    self._give_up()
                    raise found
                self._share_prompt(found)
                if seen := self._merger.take(choice, found):
                    yield seen
            yield self._merger.end()
        finally:
            for task in reading:
                task.cancel()
            await asyncio.gather(*reading, return_exceptions=True)
            self.drop()

    def cancel(self, error: errors.SllmError, attempt: str | None = None) -> None:
        """Ends them all from outside their stream; `attempt` as in Router.cancel.

        Raises:
            errors.RequestNotFound: Another attempt reads them.
        """
        for ticket in self._tickets.values():
            generations.check_attempt(ticket.request, attempt)
        for ticket in self._tickets.values():
            ticket.linger = 0.0  # it is not to go on
            ticket.fail(error)

    def drop(self) -> None:
        """Stops whatever is still done for them. May be called again."""
        for ticket in self._tickets.values():
            self._drop(ticket)
        self._dropped(self)

    async def _read(self, choice: int, ticket: Ticket) -> None:
        try:
            async with aclosing(self._serve(ticket)) as events:
                async for event in events:
                    await self._arrived.put((choice, event))
        except Exception as error:  # the caller's stream ends with it, whatever it is
            await self._arrived.put((choice, error))

    def _give_up(self) -> None:
        """Has nothing linger of what has failed as a whole."""
        for ticket in self._tickets.values():
            ticket.linger = 0.0
        self.drop()

    def _share_prompt(self, event: GenerateResponse) -> None:
        """Gives those that wait the tokens of the first: a template may give others tomorrow."""
        if told := event.started.prompt_token_ids:
            for ticket in self._tickets.values():
                if not (ticket.opened or ticket.progress.prompt):
                    choices.set_prompt(ticket.request, told)
