"""Brings what is into line with what should be: dispatches, scales, places, starts and stops.

It sleeps until something happens (a request, a report, the end of a start or a stop) or until
the next moment at which time alone changes something. Each pass looks at the deployments that
are due, and goes through them in the order of their oldest request.
"""

from collections.abc import Sequence

from sllm import errors
from sllm.clock import Clock
from sllm.control.cluster.instances import Instance, InstanceState
from sllm.control.cluster.nodes import NodeView
from sllm.control.deployments.scaler import Scaler
from sllm.control.orchestration.adoption import Adoption
from sllm.control.orchestration.agenda import Agenda
from sllm.control.orchestration.dispatcher import Dispatcher
from sllm.control.orchestration.evacuator import Evacuator
from sllm.control.orchestration.launcher import LONGEST_GRACE, Launcher
from sllm.control.orchestration.roll_over import RollOver
from sllm.control.orchestration.scheduler import Scheduler
from sllm.control.state.state import State


class Orchestrator:
    """The control plane's loop."""

    def __init__(
        self,
        state: State,
        agenda: Agenda,
        launcher: Launcher,
        dispatcher: Dispatcher,
        scaler: Scaler,
        scheduler: Scheduler,
        evacuator: Evacuator,
        adoption: Adoption,
        roll_over: RollOver,
        clock: Clock,
    ) -> None:
        self._state = state
        self._agenda = agenda
        self._launcher = launcher
        self._dispatcher = dispatcher
        self._scaler = scaler
        self._scheduler = scheduler
        self._evacuator = evacuator
        self._adoption = adoption
        self._roll_over = roll_over
        self._clock = clock

    async def run(self) -> None:
        """Works until it is cancelled."""
        while True:
            await self._agenda.until_due()
            self._pass()

    def _pass(self) -> None:
        now, state = self._clock.now(), self._state
        self._adoption.end_due(now)
        due = self._agenda.take(now, state.unmet) & state.deployments.keys()
        for name in due:
            self._dispatcher.dispatch(name)
        wanted = self._scaler.wanted(due, now)
        if wanted:
            # Room goes to whoever has waited longest, not to whoever was woken: those who found
            # none before are asked for again, and take part.
            unmet = state.unmet & state.deployments.keys()
            self._scheduler.schedule(wanted | self._scaler.wanted(unmet, now))

    # --- nodes --------------------------------------------------------------------------------

    def node_reported(self, before: NodeView | None, view: NodeView) -> None:
        """A node's instances or contents have changed."""
        present = before.present if before else ()
        if present != view.present:
            self._compare(present, view)
        if view.facts.leaving and view.node_id not in self._state.draining:
            self._empty(view)
        self._agenda.wake_for_room()

    def node_lost(self, node_id: str, instances: Sequence[Instance]) -> None:
        """A node is gone, and all that ran on it."""
        if node_id in self._state.leaving:
            self._state.leaving.discard(node_id)
            self._state.draining.discard(node_id)
        self._let_go(instances)
        self._agenda.wake_for_room()

    def vacate(self, instance: Instance, grace: float) -> None:
        """Has an instance leave its node: nothing new is given to it, and it ends when it can.

        What it runs goes on elsewhere; what cannot, ends where it is, within `grace` seconds.
        """
        if instance.state is InstanceState.STARTING:
            self._launcher.end(instance)
        else:
            self._launcher.drain(instance, min(grace, LONGEST_GRACE))
            self._evacuator.move_away(instance)
        self._agenda.wake(instance.deployment)

    def _empty(self, view: NodeView) -> None:
        """Drains a node that is about to go down by itself."""
        self._state.leaving.add(view.node_id)
        self._state.draining.add(view.node_id)
        for instance in view.present:
            self.vacate(instance, LONGEST_GRACE)

    def _compare(self, before: tuple[Instance, ...], view: NodeView) -> None:
        """Takes in the instances that are new, and lets go of those that are gone."""
        present = {one.instance_id for one in view.present}
        self._let_go(tuple(one for one in before if one.instance_id not in present))
        for instance in view.present:
            self._take_in(instance)

    def _let_go(self, instances: Sequence[Instance]) -> None:
        gone = [one.instance_id for one in instances]
        self._launcher.forget(gone)
        self._state.orphans.forget(gone)
        for instance in instances:
            self._agenda.wake(instance.deployment)

    def _take_in(self, instance: Instance) -> None:
        """Adopts an instance that this control plane has not started itself."""
        deployment = self._state.deployments.get(instance.deployment)
        if deployment is None and not self._adoption.keeps(instance):
            self._launcher.end(instance)
        elif instance.state is InstanceState.READY:
            adopted = instance.instance_id not in self._state.starts
            self._state.slots.add(
                instance.instance_id, instance.node_id, self._clock.now(), asked_for=adopted
            )
            if deployment and not instance.serves(deployment.model.identity):
                self._retire(instance)  # it was rolled over while this control plane was away
        stays = deployment and not self._roll_over.replaces(deployment, instance)
        if deployment and stays and instance.state is InstanceState.STARTING:
            self._launcher.join(deployment, instance)
        self._agenda.wake(instance.deployment)

    # --- deployments --------------------------------------------------------------------------

    def deployment_made(self, name: str) -> None:
        """A deployment is there or has changed: it adopts what is found of it, if it may."""
        deployment = self._state.deployments[name]
        self._adoption.adopt(deployment)
        for instance in self._state.fleet.instances_of(name):
            if not instance.serves(deployment.model.identity):
                self._retire(instance)  # an orphan of what had the name before
        self._roll_over.deployment_changed(deployment)
        self._dispatcher.tuning.deployment_changed(deployment)
        self._agenda.wake(name)

    def rolled_over(self, name: str) -> None:
        """A deployment is another checkpoint from now on: what serves the former one leaves.

        Requests that it has end there; those that wait go to instances of the new one.
        """
        self._state.failed_starts.pop(name, None)
        for instance in self._state.fleet.instances_of(name):
            self._retire(instance)
        self._agenda.wake(name)

    def _retire(self, instance: Instance) -> None:
        if instance.state is InstanceState.STARTING:
            self._launcher.end(instance)
        elif instance.state is InstanceState.READY:
            self._launcher.drain(instance, LONGEST_GRACE)

    def deployment_deleted(self, name: str) -> None:
        """A deployment is to exist no more: its requests fail, its instances end."""
        gone = errors.DeploymentNotFound(f"deployment {name} was deleted")
        cancelled = errors.Cancelled(f"deployment {name} was deleted")
        tickets = self._state.tickets.values()
        for ticket in [one for one in tickets if name in (one.deployment, one.adapter)]:
            ticket.fail(cancelled if ticket.assignment else gone)
        self._state.orphans.deployment_deleted(name)
        for instance in self._state.fleet.instances_of(name):
            self._launcher.end(instance)
        self._agenda.forget(name)
        self._agenda.wake_for_room()
