"""Brings what is into line with what should be: dispatches, scales, places, starts and stops.

It sleeps until something happens (a request, a report, the end of a start or a stop) or until
the next moment at which time alone changes something. Each pass looks at the deployments that
are due, and goes through them in the order of their oldest request.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Final, Protocol

from sllm import errors
from sllm.clock import Clock
from sllm.control.cluster.instances import Instance, InstanceState
from sllm.control.cluster.nodes import NodeView
from sllm.control.config import ControlConfig
from sllm.control.deployments.scaler import Scaler
from sllm.control.orchestration.launcher import Launcher
from sllm.control.orchestration.placer import Placer
from sllm.control.placement import placement
from sllm.control.placement.decisions import MigrateThenStart, Move, Start
from sllm.control.requests.tickets import Assignment, Ticket
from sllm.control.state.state import StartUnderWay, State
from sllm.control.types.status import Loading
from sllm.control.wire.node_client import Node, Nodes

_LONGEST_GRACE: Final = 7 * 24 * 3600.0
"""Seconds that stand for as long as it takes."""
_LOOK_SECONDS = 0.02
"""Between two looks at how far a start is."""


class Evacuator(Protocol):
    """Whoever migrates instances in the background."""

    def move_away(self, instance: Instance) -> None:
        """Has what an instance runs go on elsewhere, wherever that is soonest."""
        ...

    def make_way(self, name: str, moves: Sequence[Move]) -> None:
        """Has instances go on elsewhere for a deployment, and tells `way_made` at the end."""
        ...


class Orchestrator:
    """The control plane's loop."""

    def __init__(self, state: State, nodes: Nodes, clock: Clock, config: ControlConfig) -> None:
        self._state = state
        self._nodes = nodes
        self._clock = clock
        self._config = config
        self._launcher = Launcher(state, nodes, clock, config, self._start_ended, self._stop_failed)
        self.placer = Placer(state, self._launcher, clock, config, self._later, self.make_way)
        self.scaler = Scaler(state, clock, self._end, self._later)
        self.evacuator: Evacuator
        """Set before anything can happen."""
        self._wake = asyncio.Event()
        self._due: set[str] = set()
        self._room_changed = False
        self._ways: dict[str, list[str]] = {}
        """For each deployment, the instances that are being migrated away for it."""
        self._moments: dict[str, float] = {}
        """When time alone makes a deployment due, in the clock's seconds."""

    async def run(self) -> None:
        """Works until it is cancelled."""
        while True:
            await self._until_due()
            self._pass()

    async def close(self) -> None:
        """Leaves the nodes with what they do."""
        await self._launcher.close()

    # --- what has happened --------------------------------------------------------------------

    def wake(self, deployment: str) -> None:
        """A deployment's requests or instances have changed."""
        self._due.add(deployment)
        self._wake.set()
        self._state.changes.notify(deployment)

    def wake_for_room(self) -> None:
        """A node has, or may have, more room than before."""
        self._room_changed = True
        self._wake.set()

    def node_reported(self, before: NodeView | None, view: NodeView) -> None:
        """A node's instances or contents have changed."""
        present = before.present if before else ()
        if present != view.present:
            self._compare(present, view)
        if view.facts.leaving and view.node_id not in self._state.draining:
            self._empty(view)
        self.wake_for_room()

    def node_lost(self, node_id: str, instances: tuple[Instance, ...]) -> None:
        """A node is gone, and all that ran on it."""
        if node_id in self._state.leaving:
            self._state.leaving.discard(node_id)
            self._state.draining.discard(node_id)
        self._let_go(instances)
        self.wake_for_room()

    def instance_failed(self, instance: Instance) -> None:
        """An instance has failed a request: it gets no more, and ends if it has not yet."""
        self._end(instance.instance_id)

    def released(self, ticket: Ticket, assignment: Assignment) -> None:
        """A request has left its instance."""
        instance_id, now = assignment.instance.instance_id, self._clock.now()
        idle = self._state.slots.release(instance_id, now, ticket.keep_alive)
        if idle:
            self.wake(ticket.deployment)
            self.wake_for_room()
        else:
            self.dispatch(ticket.deployment)

    def vacate(self, instance: Instance, grace: float) -> None:
        """Has an instance leave its node: nothing new is given to it, and it ends when it can.

        What it runs goes on elsewhere; what cannot, ends where it is, within `grace` seconds.
        """
        if instance.state is InstanceState.STARTING:
            self._launcher.end(instance)
        else:
            self._launcher.drain(instance, min(grace, _LONGEST_GRACE))
            self.evacuator.move_away(instance)
        self.wake(instance.deployment)

    def _empty(self, view: NodeView) -> None:
        """Drains a node that is about to go down by itself."""
        self._state.leaving.add(view.node_id)
        self._state.draining.add(view.node_id)
        for instance in view.present:
            self.vacate(instance, _LONGEST_GRACE)

    def make_way(self, name: str, action: MigrateThenStart) -> None:
        """Migrates running instances away, so that there is room for a deployment."""
        self.placer.making_way.add(name)
        self._ways[name] = [move.instance_id for move in action.moves]
        self.evacuator.make_way(name, action.moves)

    def way_made(self, name: str) -> None:
        """What was to make room for a deployment has gone, or stays."""
        self.placer.making_way.discard(name)
        if any(map(self._state.fleet.instance, self._ways.pop(name, ()))):
            self.placer.way_failed(name)
        self.wake(name)
        self.wake_for_room()

    def start(self, name: str, start: Start) -> Instance:
        """Begins an instance that requests are to move to."""
        instance = self.placer.start(name, start, for_move=True)
        self._state.changes.notify(name)
        return instance

    async def follow_start(self, instance: Instance) -> AsyncGenerator[Loading]:
        """How far the start of an instance is, until it is ready.

        Raises:
            errors.SllmError: It has failed.
        """
        start = self._state.starts.get(instance.instance_id)
        told: Loading | None = None
        while start and instance.instance_id in self._state.starts:
            if start.loading and start.loading != told:
                told = start.loading
                yield told
            await self._clock.sleep(_LOOK_SECONDS)
        if start and start.error:
            raise start.error

    def leave(self, instance: Instance) -> None:
        """Gives an instance no more requests; it ends with those that it has."""
        self._launcher.drain(instance)
        self.wake(instance.deployment)

    def reattach(self, ticket: Ticket) -> bool:
        """Gives a request whose caller reads on to the instance that goes on with it, if any."""
        for instance in self._state.fleet.instances_of(ticket.deployment):
            if ticket.request_id in instance.unread:
                assignment = self.arrive(ticket, instance.instance_id)
                if assignment:
                    ticket.assign(assignment)
                    return True
        return False

    def unread_on(self, request_id: str) -> Node | None:
        """The node that goes on with a request although nobody reads it. None: none does."""
        for instance in self._state.fleet.known_instances():
            if request_id in instance.unread:
                return self._nodes.by_id.get(instance.node_id)
        return None

    def arrive(self, ticket: Ticket, instance_id: str) -> Assignment | None:
        """Where a request that has moved is now; None if that is gone already."""
        instance = self._state.fleet.instance(instance_id)
        if instance is None or instance_id not in self._state.slots.uses:
            return None
        now = self._clock.now()
        self._state.slots.take(instance_id, ticket.deployment, now)
        node = self._nodes.by_id[instance.node_id]
        return Assignment(instance, node, self._state.records.get(instance_id), now)

    def rolled_over(self, name: str) -> None:
        """A deployment is another checkpoint from now on: what serves the former one leaves.

        Requests that it has end there; those that wait go to instances of the new one.
        """
        self._state.failed_starts.pop(name, None)
        for instance in self._state.fleet.instances_of(name):
            self._retire(instance)
        self.wake(name)

    def _retire(self, instance: Instance) -> None:
        if instance.state is InstanceState.STARTING:
            self._launcher.end(instance)
        elif instance.state is InstanceState.READY:
            self._launcher.drain(instance, _LONGEST_GRACE)

    def deployment_deleted(self, name: str) -> None:
        """A deployment is to exist no more: its requests fail, its instances end."""
        gone = errors.DeploymentNotFound(f"deployment {name} was deleted")
        cancelled = errors.Cancelled(f"deployment {name} was deleted")
        for ticket in [one for one in self._state.tickets.values() if one.deployment == name]:
            ticket.fail(cancelled if ticket.assignment else gone)
        for instance in self._state.fleet.instances_of(name):
            self._launcher.end(instance)
        self._moments.pop(name, None)
        self.wake_for_room()

    def _compare(self, before: tuple[Instance, ...], view: NodeView) -> None:
        """Takes in the instances that are new, and lets go of those that are gone."""
        present = {one.instance_id for one in view.present}
        self._let_go(tuple(one for one in before if one.instance_id not in present))
        for instance in view.present:
            self._take_in(instance)

    def _let_go(self, instances: tuple[Instance, ...]) -> None:
        self._launcher.forget(one.instance_id for one in instances)
        for instance in instances:
            self.wake(instance.deployment)

    def _take_in(self, instance: Instance) -> None:
        """Adopts an instance that this control plane has not started itself."""
        deployment = self._state.deployments.get(instance.deployment)
        if deployment is None:
            self._launcher.end(instance)
        elif instance.state is InstanceState.READY:
            self._state.slots.add(instance.instance_id, instance.node_id, self._clock.now())
            if not instance.serves(deployment.model.identity):
                self._retire(instance)  # it was rolled over while this control plane was away
        elif instance.state is InstanceState.STARTING:
            self._launcher.join(deployment, instance)
        self.wake(instance.deployment)

    # --- a pass -------------------------------------------------------------------------------

    async def _until_due(self) -> None:
        moment = min(self._moments.values(), default=None)
        delay = None if moment is None else max(0.0, moment - self._clock.now())
        try:
            async with asyncio.timeout(delay):
                await self._wake.wait()
        except TimeoutError:
            return

    def _pass(self) -> None:
        self._wake.clear()
        now = self._clock.now()
        due = self._take_due(now)
        for name in due:
            self.dispatch(name)
        wanted = self.scaler.wanted(due, now)
        if wanted:  # room goes to whoever has waited longest, not to whoever was woken
            unmet = self.placer.unmet & self._state.deployments.keys()
            self.placer.place_all(wanted | self.scaler.wanted(unmet, now))

    def _take_due(self, now: float) -> list[str]:
        """The deployments to look at; none of them is due any longer."""
        due, self._due = self._due, set()
        due |= {name for name, moment in self._moments.items() if moment <= now}
        if self._room_changed:
            due |= self.placer.unmet
        self._room_changed = False
        for name in due:
            self._moments.pop(name, None)
        return [name for name in due if name in self._state.deployments]

    def _later(self, name: str, moment: float) -> None:
        self._moments[name] = min(moment, self._moments.get(name, moment))

    # --- dispatch -----------------------------------------------------------------------------

    def dispatch(self, name: str) -> None:
        """Gives waiting requests to instances with free slots, oldest first."""
        state, need = self._state, self._state.needs.get(name)
        while need and state.queue.head(name):
            picked_at = self._clock.now()
            instances = state.fleet.instances_of(name)
            instance = placement.free_instance(instances, state.slots.uses, need.max_concurrency)
            if instance is None:
                return
            state.slots.take(instance.instance_id, name, picked_at)
            node = self._nodes.by_id[instance.node_id]
            record = state.records.get(instance.instance_id)
            state.queue.pop(name).assign(Assignment(instance, node, record, picked_at))
            self.wake(name)  # one that is as busy as it should be may want another beside it

    # --- ends ---------------------------------------------------------------------------------

    def _end(self, instance_id: str) -> None:
        if instance := self._state.fleet.instance(instance_id):
            self._launcher.end(instance)
            self.wake(instance.deployment)

    def _stop_failed(self, deployment: str) -> None:
        self.wake(deployment)
        self.wake_for_room()

    def _start_ended(self, start: StartUnderWay, error: errors.SllmError | None) -> None:
        name = start.deployment.name
        if error is None:
            self._state.failed_starts.pop(name, None)
            self.placer.start_succeeded(start)
        elif name in self._state.deployments and not (start.withdrawn or start.for_move):
            self.placer.start_failed(start, error)
        self.wake(name)
        self.wake_for_room()
