"""Gives requests to instances: those that wait, those that have moved, those that are read on."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Final

from sllm.clock import Clock
from sllm.control.cluster.instances import Instance
from sllm.control.cluster.needs import Need
from sllm.control.orchestration.agenda import Agenda
from sllm.control.orchestration.launcher import Launcher
from sllm.control.orchestration.tuning import Tuning
from sllm.control.placement import placement
from sllm.control.requests.queue import RequestQueue
from sllm.control.requests.tickets import Assignment, Ticket
from sllm.control.state.state import State
from sllm.control.wire.node_client import Node
from sllm.control.wire.nodes import Nodes
from sllm.control.wire.prefixes import set_keeper
from sllm.prompt_prefixes import Keeper

_IN_LINE: Final = 3
"""See `Dispatcher._adapted`."""


class Dispatcher:
    """The only one that takes slots of instances for requests, and gives them back."""

    def __init__(
        self, state: State, nodes: Nodes, launcher: Launcher, agenda: Agenda, clock: Clock
    ) -> None:
        self._state = state
        self._nodes = nodes
        self._launcher = launcher
        self._agenda = agenda
        self._clock = clock
        self.tuning = Tuning(state, agenda, clock)
        """Of how many requests an instance should have at once."""
        self._giving_way: set[Ticket] = set()
        """Requests that still have the slots which others will get."""
        self._getting: dict[str, Counter[str]] = {}
        """How many requests each instance has for adapters, by their identity."""

    # --- requests that wait -------------------------------------------------------------------

    def enqueue(self, ticket: Ticket) -> None:
        """Puts a request into its line; it has an instance at once if one has a free slot."""
        if not ticket.background:
            alone = not self._state.is_asked_for(ticket.deployment)
            self._state.arrivals.arrived(ticket.deployment, self._clock.now(), alone=alone)
        self._state.line_of(ticket).add(ticket)
        self.dispatch(ticket.deployment)
        if ticket.assignment is None:
            self._agenda.wake(ticket.deployment)
            start = self._state.first_start(ticket.deployment)
            if start and start.loading:
                ticket.show(start.loading)

    def requeue(self, ticket: Ticket) -> None:
        """Puts a request back into its line: its instance is gone."""
        self._state.line_of(ticket).add(ticket)
        self._agenda.wake(ticket.deployment)

    def dispatch(self, name: str) -> None:
        """Gives waiting requests to instances with free slots: whoever waits longest goes first.

        Those that nobody waits for get what is left, and give their slots up where one is lacking.
        """
        need = self._state.needs.get(name)
        if need is None:
            return
        if self._deal_out(self._state.queue, need):
            self._deal_out(self._state.background, need)
        else:
            self._make_way(name)

    def _deal_out(self, line: RequestQueue[Ticket], need: Need) -> bool:
        """Gives the requests of a line to instances; says whether all of them have one."""
        name, all_have_one = need.deployment, True
        for ticket in line.of(name):
            picked_at = self._clock.now()
            instance = self._free_instance(need, ticket)
            if instance is None:
                all_have_one = False
                if ticket.avoids:
                    continue  # others may have what it avoids
                break
            line.remove(ticket)
            ticket.assign(self._take(ticket, instance, picked_at))
            self._agenda.wake(name)  # one that is as busy as it should be may want another beside
        return all_have_one

    def _make_way(self, name: str) -> None:
        """Has as many requests that nobody waits for give their slots up as others wait."""
        state = self._state
        leaving = sum(one.deployment == name for one in self._giving_way)
        lacking = max(0, state.queue.count(name) - leaving)
        instances = state.fleet.instances_of(name) if lacking else ()
        there = [one for each in instances for one in state.background_on(each.instance_id)]
        for ticket in [one for one in there if not one.gave_way][:lacking]:
            self._giving_way.add(ticket)
            ticket.give_way()

    def _free_instance(self, need: Need, ticket: Ticket) -> Instance | None:
        """One that runs as its deployment is to; one from before a change if there is none yet."""
        state = self._state
        instances: Sequence[Instance] = state.fleet.instances_of(need.deployment)
        if ticket.adapter:
            instances = self._taking_adapter(ticket, instances)
        today = [one for one in instances if one.instance_id not in state.outdated]
        choose = partial(
            placement.free_instance,
            uses=state.slots.uses,
            max_concurrency=need.max_concurrency,
            distance=self._distance(ticket),
            background=ticket.background,
            saved=state.kept_prefixes.saved(ticket.prefixes),
        )
        choices = (*self._adapted(ticket, today), today, instances)
        return next(filter(None, map(choose, choices)), None)

    def _distance(self, ticket: Ticket) -> Callable[[Instance], float]:
        """What the way to instances costs a request."""
        nodes, zones = self._state.fleet.nodes, self._state.zones

        def distance(instance: Instance) -> float:
            node = nodes.get(instance.node_id)
            return zones.seconds(ticket.zone, node.facts.zone) if node else 0.0

        return distance if ticket.zone else placement.near

    def _taking_adapter(self, ticket: Ticket, instances: Iterable[Instance]) -> list[Instance]:
        """Those that take a request with an adapter: not where that could not be loaded."""
        taking = [one for one in instances if one.takes_adapters]
        return [one for one in taking if one.instance_id not in ticket.avoids] or taking

    def has_other(self, ticket: Ticket) -> bool:
        """Whether any instance may serve a request that has not failed it."""
        ready = self._state.ready_replicas(ticket.deployment)
        return any(one.takes_adapters and one.instance_id not in ticket.avoids for one in ready)

    def _adapted(self, ticket: Ticket, instances: Sequence[Instance]) -> Iterator[list[Instance]]:
        """Where a request for an adapter waits least, those first.

        An instance has it, or is getting it; or it has room for one more; or one that no request
        uses leaves. Where all are in use, it stands in line.
        """
        if not ticket.adapter:
            return
        identity = ticket.request.adapter.identity
        ranks = [self._adapter_rank(one, identity) for one in instances]
        for rank in range(_IN_LINE):
            yield [one for one, its in zip(instances, ranks, strict=True) if its == rank]

    def _adapter_rank(self, instance: Instance, identity: str) -> int:
        most = instance.config.max_adapters if instance.config else math.inf
        getting = self._getting.get(instance.instance_id, Counter())
        known = {one.identity for one in instance.adapters} | getting.keys()
        if instance.has_adapter(identity) or (identity in getting and len(getting) <= most):
            return 0
        if len(known) < most:
            return 1
        return 2 if len(getting) < most else _IN_LINE

    # --- requests that go on ------------------------------------------------------------------

    def arrive(self, ticket: Ticket, instance_id: str) -> Assignment | None:
        """Where a request that has moved is now; None if that is gone already."""
        instance = self._state.fleet.instance(instance_id)
        if instance is None or instance_id not in self._state.slots.uses:
            return None
        return self._take(ticket, instance, self._clock.now())

    def reattach(self, ticket: Ticket, left: str = "") -> bool:
        """Gives a request whose caller reads on to the instance that goes on with it, if any.

        That is the one where its caller has `left` it, the one that another control plane reads it
        from, or one that is reported to have it unread.
        """
        instances = self._state.fleet.instances_of(ticket.deployment)
        unread = [one.instance_id for one in instances if ticket.request_id in one.unread]
        carried = [one.instance_id for one in instances if one.instance_id == ticket.carried_from]
        for instance_id in (left, *carried, *unread):
            assignment = self.arrive(ticket, instance_id)
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

    def _take(self, ticket: Ticket, instance: Instance, now: float) -> Assignment:
        """Takes a slot of an instance."""
        set_keeper(ticket.request, self._keeper(ticket, instance.node_id))
        if ticket.background:
            self._state.slots.take_background(instance.instance_id)
        else:
            self._state.slots.take(instance.instance_id, ticket.deployment, now)
        if ticket.adapter:
            getting = self._getting.setdefault(instance.instance_id, Counter())
            getting[ticket.request.adapter.identity] += 1
        node = self._nodes.by_id[instance.node_id]
        return Assignment(instance, node, self._state.records.get(instance.instance_id), now)

    def _keeper(self, ticket: Ticket, node_id: str) -> Keeper | None:
        """The node that keeps most of a request's prompt, unless it is the one that gets it."""
        saved = self._state.kept_prefixes.saved(ticket.prefixes)
        best = max(saved, key=saved.__getitem__, default=node_id)
        node = self._state.fleet.nodes.get(best)
        if node is None or saved.get(best, 0.0) <= saved.get(node_id, 0.0):
            return None
        return Keeper(best, node.facts.address, saved[best])

    # --- requests that leave ------------------------------------------------------------------

    def released(self, ticket: Ticket, assignment: Assignment) -> None:
        """A request has left its instance."""
        if self._release(ticket, assignment.instance.instance_id):
            self._agenda.wake(ticket.deployment)
            self._agenda.wake_for_room()
        else:
            self.dispatch(ticket.deployment)

    def _release(self, ticket: Ticket, instance_id: str) -> bool:
        """Gives a slot back; says whether its instance is idle now."""
        if ticket.adapter:
            self._forget_adapter(instance_id, ticket.request.adapter.identity)
        if not ticket.background:
            now = self._clock.now()
            if ticket.deployment in self._state.deployments:  # else it was forgotten
                self._state.arrivals.ended(ticket.deployment, now)
            return self._state.slots.release(instance_id, now, ticket.keep_alive)
        self._giving_way.discard(ticket)
        return self._state.slots.release_background(instance_id)

    def _forget_adapter(self, instance_id: str, identity: str) -> None:
        getting = self._getting[instance_id]
        getting[identity] -= 1
        if not getting[identity]:
            del getting[identity]
        if not getting:
            del self._getting[instance_id]

    def instance_failed(self, instance: Instance) -> None:
        """An instance has failed a request: it gets no more, and ends if it has not yet."""
        self._launcher.dismiss(instance.instance_id)
