"""Nodes that are being drained: they get no new work, and what they run ends."""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from contextlib import aclosing
from typing import Final

from sllm import errors
from sllm.clock import Clock
from sllm.control.cluster.needs import Need
from sllm.control.cluster.nodes import NodeView
from sllm.control.orchestration.agenda import Agenda
from sllm.control.orchestration.orchestrator import Orchestrator
from sllm.control.placement.room import too_small
from sllm.control.state.durable import Durable
from sllm.control.state.state import State
from sllm.control.types.calls import Call, Done
from sllm.control.types.operations import DrainProgress

_LOOK_SECONDS: Final = 0.1
"""Between two looks at what a node still runs: the events are many, a look costs little."""


def stranded(
    nodes: Mapping[str, NodeView], leaving: AbstractSet[str], needs: Iterable[Need]
) -> list[str]:
    """Which deployments could not be served once the nodes `leaving` take no new work.

    Those that no node could serve anyway are not among them.
    """
    left = [view for node_id, view in nodes.items() if node_id not in leaving]
    return sorted(
        need.deployment
        for need in needs
        if not all(too_small(view, need) for view in nodes.values())
        and all(too_small(view, need) for view in left)
    )


class Drains:
    """The drained nodes, in memory and in the store, and what becomes of their instances."""

    def __init__(
        self,
        durable: Durable,
        state: State,
        orchestrator: Orchestrator,
        agenda: Agenda,
        undrained: Callable[[], None],
        clock: Clock,
    ) -> None:
        """`undrained` is told when a node takes new work again."""
        self._undrained = undrained
        self._durable = durable
        self._state = state
        self._orchestrator = orchestrator
        self._agenda = agenda
        self._clock = clock
        self._graces: dict[str, float] = {}
        """Seconds that requests have, by node; as long as they take where it is infinite."""
        self._closing = False
        self._changing = asyncio.Lock()

    async def load(self) -> None:
        """Takes in what was stored before a restart."""
        self._state.draining.update(await self._durable.run(self._durable.store.drained))

    def end_streams(self) -> None:
        """Ends the streams of callers with ShuttingDown."""
        self._closing = True

    async def drain(
        self, node_id: str, grace: float, force: bool, call: Call[Done]
    ) -> AsyncGenerator[DrainProgress]:
        """Drains a node; yields what it still runs, now and at every change, until that is nothing.

        Args:
            node_id: Which.
            grace: Seconds that running requests have. Infinite: as long as they take.
            force: Whether to do so although requests are left without a node.
            call: As its caller named it.

        Raises:
            errors.NodeNotFound: There is no such node.
            errors.NodeNeeded: Requests would be left without a node.
            errors.NodeLost: It went before it was drained.
            errors.Cancelled: It was undrained meanwhile.
            errors.ShuttingDown: The control plane is going down.
        """
        if await self._durable.recall(call) is None:
            async with self._changing:  # two at once may each count on the other's node
                await self._begin(node_id, grace, force, call)
        elif node_id not in self._state.draining:
            return
        async with aclosing(self._follow(node_id)) as steps:
            async for progress in steps:
                yield progress

    async def undrain(self, node_id: str, call: Call[Done]) -> None:
        """Gives a node new work again; one that is not being drained is left as it is.

        Raises:
            errors.NodeNotFound: There is no such node.
        """
        store = self._durable.store
        if await self._durable.recall(call) is not None:
            return
        if node_id not in self._state.draining:
            self._state.node(node_id)
        await self._durable.run(store.set_drained, node_id, False, call, time.time())
        self._state.draining.discard(node_id)
        self._graces.pop(node_id, None)
        self._agenda.wake_for_room()
        self._undrained()

    def node_joined(self, view: NodeView) -> None:
        """Goes on draining a node that has come back."""
        if view.node_id in self._state.draining:
            self._vacate(view)

    async def _begin(self, node_id: str, grace: float, force: bool, call: Call[Done]) -> None:
        self._state.node(node_id)
        if not force and node_id not in self._state.draining:
            self._check_not_needed(node_id)
        store = self._durable.store
        await self._durable.run(store.set_drained, node_id, True, call, time.time())
        self._state.draining.add(node_id)
        self._state.leaving.discard(node_id)  # if it goes down it is drained still when it is back
        self._graces[node_id] = min(grace, self._graces.get(node_id, math.inf))
        if view := self._state.fleet.nodes.get(node_id):
            self._vacate(view)

    def _check_not_needed(self, node_id: str) -> None:
        state = self._state
        asked = {ticket.deployment for ticket in state.tickets.values()}
        needs = [state.needs[name] for name in asked if name in state.needs]
        before = stranded(state.fleet.nodes, state.draining, needs)
        after = stranded(state.fleet.nodes, state.draining | {node_id}, needs)
        if lost := sorted(set(after) - set(before)):
            raise errors.NodeNeeded(
                f"{node_id} is the last node that can serve {', '.join(lost)}, for which there "
                "are requests: add a node, wait until they have ended, or force it",
                metadata={"deployments": ",".join(lost)},
            )

    def _vacate(self, view: NodeView) -> None:
        grace = self._graces.get(view.node_id, math.inf)
        for instance in view.present:
            self._orchestrator.vacate(instance, grace)

    async def _follow(self, node_id: str) -> AsyncGenerator[DrainProgress]:
        last: DrainProgress | None = None
        while last is None or not last.done:
            self._check_goes_on(node_id)
            progress = self._progress(node_id)
            if progress != last:
                last = progress
                yield progress
            else:
                await self._clock.sleep(_LOOK_SECONDS)

    def _check_goes_on(self, node_id: str) -> None:
        if self._closing:
            raise errors.ShuttingDown("the control plane is going down; drain again to follow")
        if node_id not in self._state.draining:
            raise errors.Cancelled(f"{node_id} was undrained")
        if node_id not in self._state.fleet.nodes:
            raise errors.NodeLost(f"{node_id} is gone; if it comes back, it is drained further")

    def _progress(self, node_id: str) -> DrainProgress:
        state = self._state
        given = [one.assignment for one in state.tickets.values() if one.assignment]
        return DrainProgress(
            running_requests=sum(one.instance.node_id == node_id for one in given),
            instances=sum(one.node_id == node_id for one in state.fleet.known_instances()),
        )
