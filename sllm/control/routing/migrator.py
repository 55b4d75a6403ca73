"""Has generations go on elsewhere: finds them a place, has it made ready, and has nodes move them.

The nodes cut over among themselves: `sllm/node/generations`.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Final

import structlog

from sllm import errors
from sllm.clock import Clock
from sllm.control import metrics
from sllm.control.cluster.instances import Instance, InstanceState
from sllm.control.orchestration.agenda import Agenda
from sllm.control.orchestration.launcher import Launcher
from sllm.control.orchestration.placer import Placer
from sllm.control.placement import placement
from sllm.control.placement.decisions import Start
from sllm.control.placement.relocation import transfer_seconds
from sllm.control.requests.tickets import Ticket
from sllm.control.state.state import State
from sllm.control.types.migrations import (
    Chosen,
    Ended,
    MigrationAsk,
    MigrationReason,
    Moved,
    News,
    Stayed,
)
from sllm.control.wire import choices
from sllm.control.wire.nodes import Nodes

log = structlog.get_logger()

SPLICE_SECONDS: Final = 2.0
"""Time that the streams of what has moved have to follow it."""


class Migrator:
    """Carries migrations out, whoever asks for them."""

    def __init__(
        self,
        state: State,
        nodes: Nodes,
        placer: Placer,
        launcher: Launcher,
        agenda: Agenda,
        clock: Clock,
    ) -> None:
        self._state = state
        self._nodes = nodes
        self._placer = placer
        self._launcher = launcher
        self._agenda = agenda
        self._clock = clock

    def of_request(self, request_id: str, to_node: str | None) -> MigrationAsk:
        """What an operator asks for one request.

        Raises:
            errors.RequestNotFound: It is not under way, or waits for an instance.
        """
        ticket = self._state.tickets.get(request_id)
        if ticket is None and (several := self._choices(request_id)):
            raise errors.RequestNotFound(
                f"request {request_id!r} has several samples, which move one by one: "
                f"{', '.join(several)}"
            )
        if ticket is None or ticket.assignment is None:
            raise errors.RequestNotFound(
                f"no request {request_id!r} is being generated; it may wait, or have finished"
            )
        source = ticket.assignment.instance
        return MigrationAsk(source, MigrationReason.OPERATOR, request_id, to_node)

    def _choices(self, request_id: str) -> list[str]:
        """Ids of the samples of a request that are under way."""
        return [one for one in choices.choice_ids(request_id) if one in self._state.tickets]

    def of_instance(self, instance_id: str, to_node: str | None) -> MigrationAsk:
        """What an operator asks for an instance.

        Raises:
            errors.InstanceNotFound: There is none of this id that is ready.
        """
        source = self._state.fleet.instance(instance_id)
        if source is None or source.state is not InstanceState.READY:
            state = f"is {source.state.name}" if source else "is not there"
            raise errors.InstanceNotFound(f"instance {instance_id!r} {state}; a ready one can move")
        return MigrationAsk(source, MigrationReason.OPERATOR, None, to_node)

    def is_used(self, instance: Instance) -> bool:
        """Whether an instance has requests."""
        return bool(self._tickets(MigrationAsk(instance, MigrationReason.OPERATOR)))

    async def migrate(self, ask: MigrationAsk) -> AsyncGenerator[News]:
        """Moves what is asked for; what fails to move goes on where it is.

        A caller that leaves ends it. What has moved by then has moved.

        Raises:
            errors.SllmError: Nothing could be moved.
        """
        destination, started = self._choose(ask)
        estimate = self._estimate(ask)
        # Requests that come meanwhile must not take the slots of those that are on their way, and
        # whoever is told of the choice may send one.
        claim = self._state.slots.claim(destination.instance_id)
        claim.grow_to(len(self._tickets(ask)))
        moves = self._state.moves.setdefault(ask.source.instance_id, [])
        moves.append(destination.instance_id)
        try:
            yield Chosen(destination.node_id, destination.instance_id, started, estimate)
            if started:
                async with aclosing(self._launcher.follow(destination)) as progress:
                    async for loading in progress:
                        yield loading
            claim.grow_to(len(self._tickets(ask)))
            moved: list[Moved] = []
            async with aclosing(self._move(ask, destination)) as moving:
                async for news in moving:
                    if isinstance(news, Moved):
                        moved.append(news)
                    yield news
            self._learn(ask, destination, moved, estimate)
        finally:
            claim.release(self._clock.now())
            self._moved(ask.source.instance_id, destination.instance_id)
            self._agenda.wake(destination.deployment)

    def _moved(self, source: str, destination: str) -> None:
        """Migrations from `source` to `destination` are under way no more, or one less."""
        moves = self._state.moves[source]
        moves.remove(destination)
        if not moves:
            del self._state.moves[source]

    # --- where to -----------------------------------------------------------------------------

    def _choose(self, ask: MigrationAsk) -> tuple[Instance, bool]:
        """The instance where they go on, and whether it is started for them."""
        self._check(ask)
        count = max(1, len(self._tickets(ask)))
        if beside := self._beside(ask, count):
            return beside, False
        return self._start(ask), True

    def _check(self, ask: MigrationAsk) -> None:
        deployment = self._state.deployment(ask.source.deployment)
        # A generation tells what it was begun with before any report tells it of its instance.
        begun = {ask.source.identity, *(one.progress.model_identity for one in self._tickets(ask))}
        if deployment.model.identity and begun - {"", deployment.model.identity}:
            raise errors.SourceChanged(
                f"{ask.source.deployment} was deployed anew with another checkpoint: what "
                f"{ask.source.instance_id} has under way can end there alone"
            )
        engine = deployment.spec.engine.engine
        if ask.source.engine not in ("", engine):
            raise errors.EngineUnavailable(
                f"{ask.source.deployment} runs on {engine} from now on: what "
                f"{ask.source.instance_id} has under way on {ask.source.engine} can end there alone"
            )
        if ask.to_node is None:
            return
        self._state.working_node(ask.to_node)
        if ask.to_node == ask.source.node_id:
            raise errors.InvalidArgument(
                f"{ask.request_id or ask.source.instance_id} is on {ask.to_node} already"
            )

    def _beside(self, ask: MigrationAsk, count: int) -> Instance | None:
        """A ready instance elsewhere with as many free slots, the one with most of them."""
        state, name = self._state, ask.source.deployment
        limit = state.needs[name].max_concurrency - count
        free = [
            (use.in_flight, one.instance_id, one)
            for one in state.ready_replicas(name)
            if self._is_open(ask, one.node_id)
            and one.instance_id not in state.outdated
            and (use := state.slots.uses.get(one.instance_id))
            and use.in_flight <= limit
        ]
        return min(free)[-1] if free else None

    def _is_open(self, ask: MigrationAsk, node_id: str) -> bool:
        if node_id in self._state.draining:
            return False
        return node_id == ask.to_node or (ask.to_node is None and node_id != ask.source.node_id)

    def _start(self, ask: MigrationAsk) -> Instance:
        """Begins an instance for them.

        Raises:
            errors.NoCapacity: There is no room for it.
        """
        nodes = self._state.fleet.nodes
        closed = {key: "it is not asked for" for key in nodes if not self._is_open(ask, key)}
        demand = self._placer.demand(ask.source.deployment, closed)
        demand = replace(demand, waiting=0, impatient=False, may_migrate=False)
        decision = placement.place(self._state.snapshot(), demand)
        if isinstance(decision.action, Start):
            return self._placer.start(ask.source.deployment, decision.action, for_move=True)
        reasons = [
            f"{one.node_id}: {one.rejected}"
            for one in decision.candidates
            if one.rejected and one.node_id not in closed
        ]
        raise errors.NoCapacity(
            f"no other node has room for {ask.source.deployment}: {'; '.join(reasons[:8])}"
        )

    # --- moving -------------------------------------------------------------------------------

    def _tickets(self, ask: MigrationAsk) -> list[Ticket]:
        """The requests that are meant and still there."""
        instance_id = ask.source.instance_id
        return [
            one
            for one in self._state.tickets.values()
            if one.assignment
            and not one.stays
            and one.assignment.instance.instance_id == instance_id
            and ask.request_id in (None, one.request_id)
        ]

    async def _move(self, ask: MigrationAsk, to: Instance) -> AsyncGenerator[News]:
        source = self._nodes.by_id.get(ask.source.node_id)
        destination = self._nodes.by_id.get(to.node_id)
        if source is None or destination is None:
            gone = ask.source.node_id if source is None else to.node_id
            raise errors.NodeLost(f"node {gone} is gone")
        here = self._state.fleet.instance(ask.source.instance_id)
        if ask.request_id is None and here and here.state is InstanceState.READY:
            self._launcher.drain(here)  # it gets no more, and ends with those that it has
            self._agenda.wake(here.deployment)
        moving = self._tickets(ask)
        if ask.request_id and not moving:
            raise errors.RequestNotFound(f"request {ask.request_id!r} has finished or moved")
        if not moving:
            return
        ids = [ask.request_id] if ask.request_id else []
        moves = source.migrate(ask, ids, destination, to)
        outcomes = 0
        async with aclosing(moves) as told:
            async for news in told:
                outcomes += isinstance(news, Moved | Stayed | Ended)
                if isinstance(news, Stayed):
                    log.warning("control.stayed", request=news.request_id, error=str(news.error))
                yield news
        if ask.request_id and not outcomes:
            raise errors.RequestNotFound(f"request {ask.request_id!r} has finished or moved")
        await self._spliced(ask, moving)

    def _estimate(self, ask: MigrationAsk) -> float | None:
        """Seconds that it is expected to take. None: nothing has taught it yet."""
        cost = self._state.costs.cost
        running = [ticket.running() for ticket in self._tickets(ask)]
        return (
            transfer_seconds((replace(one, expected=0) for one in running), cost) if cost else None
        )

    def _learn(
        self, ask: MigrationAsk, to: Instance, moved: Sequence[Moved], estimate: float | None
    ) -> None:
        """Takes in what has moved, all of which was under way together."""
        if not moved:
            return
        tokens, seconds = sum(one.tokens for one in moved), max(one.seconds for one in moved)
        self._state.costs.observe_move(tokens, seconds)
        metrics.migration_seconds.record(seconds)
        for cache in (one.cache for one in moved if one.cache):
            metrics.cache_moves.add(1, {"way": cache.way.name})
            metrics.cache_bytes.add(cache.page_bytes)
        if estimate is not None:
            metrics.transfer_estimate_ratio.record(estimate / max(seconds, 1e-3))
        log.info(
            "control.migrated",
            requests=[one.request_id for one in moved],
            source=ask.source.instance_id,
            destination=to.instance_id,
            tokens=tokens,
            ways=[one.cache.way.name for one in moved if one.cache],
            estimate=estimate,
            actual=seconds,
        )

    async def _spliced(self, ask: MigrationAsk, moving: Sequence[Ticket]) -> None:
        """Returns once the streams of what has moved are read where it is now."""
        deadline = self._clock.now() + SPLICE_SECONDS
        while self._clock.now() < deadline and any(one in self._tickets(ask) for one in moving):
            await self._clock.sleep(0.01)
