"""What the control plane knows, in memory; everything here is touched by the event loop alone."""

from collections import deque
from dataclasses import dataclass, field, replace
from typing import Final

from sllm import errors
from sllm.control.cluster.instances import Instance, InstanceState
from sllm.control.cluster.needs import Need, need_of
from sllm.control.cluster.nodes import NodeView
from sllm.control.cluster.snapshot import Snapshot
from sllm.control.cluster.specs import Deployment, DeploymentState, ModelInfo
from sllm.control.cluster.tiers import Copies
from sllm.control.cluster.usage import Running
from sllm.control.cluster.zones import NOWHERE, Zones
from sllm.control.requests.pauses import Arrivals
from sllm.control.requests.queue import RequestQueue
from sllm.control.requests.service_times import ServiceTimes
from sllm.control.requests.slots import Slots
from sllm.control.requests.tickets import Ticket
from sllm.control.state.changes import Changes
from sllm.control.state.deliveries import Deliveries
from sllm.control.state.failed_starts import FailedStarts
from sllm.control.state.fleet import Fleet
from sllm.control.state.index import Index
from sllm.control.state.kept_prefixes import KeptPrefixes
from sllm.control.state.migration_cost import MigrationCosts
from sllm.control.state.orphans import Orphans
from sllm.control.state.recent_receipts import RecentReceipts
from sllm.control.state.starts import StartUnderWay
from sllm.control.tenants.tenants import Tenants
from sllm.control.types.pins import Keep, Place
from sllm.control.types.receipts import StartRecord
from sllm.control.types.status import Learned, Loading
from sllm.control.types.views import EndedRequest

ENDED_KEPT: Final = 64
"""Requests that have ended, and are told of."""


@dataclass
class State:
    """Deployments, nodes, requests, and the starts between them."""

    zones: Zones = NOWHERE
    fleet: Fleet = field(default_factory=Fleet)
    kept_prefixes: KeptPrefixes = field(default_factory=KeptPrefixes)
    slots: Slots = field(default_factory=Slots)
    queue: RequestQueue[Ticket] = field(default_factory=RequestQueue)
    background: RequestQueue[Ticket] = field(default_factory=RequestQueue)
    """Requests that nobody waits for: they get what those in `queue` leave."""
    tickets: dict[str, Ticket] = field(default_factory=dict)
    """All requests under way, queued or running, by id."""
    deployments: dict[str, Deployment] = field(default_factory=dict)
    needs: Index[Need] = field(default_factory=Index)
    kept_replicas: dict[str, int] = field(default_factory=dict)
    """min_replicas of the deployments that have any."""
    service_times: ServiceTimes = field(default_factory=ServiceTimes)
    arrivals: Arrivals = field(default_factory=Arrivals)
    learned: dict[str, Learned] = field(default_factory=dict)
    """What has been learned of deployments' pauses, as it was last acted on."""
    starts: dict[str, StartUnderWay] = field(default_factory=dict)
    """By instance."""
    records: dict[str, StartRecord] = field(default_factory=dict)
    """Of instances that this control plane has started."""
    failed_starts: dict[str, FailedStarts] = field(default_factory=dict)
    """Starts that have failed, by deployment."""
    unmet: set[str] = field(default_factory=set)
    """Deployments that wanted room and found none."""
    deliveries: Deliveries = field(init=False)
    """Which nodes are getting which checkpoints."""
    making_way: dict[str, list[str]] = field(default_factory=dict)
    """For each deployment, the instances that are being migrated away to make room for it."""
    preparing: dict[str, Loading | None] = field(default_factory=dict)
    """Deployments whose checkpoint is on its way to a node, and how far it is."""
    unprepared: dict[str, str] = field(default_factory=dict)
    """Deployments whose checkpoint could not be brought to any node, and why."""
    pinned: set[Place] = field(default_factory=set)
    """Where deployments are pinned, or about to be."""
    prefetching: dict[str, Keep] = field(default_factory=dict)
    """What is prefetched for tenants, by hold, until its node has told of it."""
    beyond_nodes: dict[str, str] = field(default_factory=dict)
    """Deployments of which min_replicas keeps more than nodes had room for when it was set."""
    leaving: set[str] = field(default_factory=set)
    """Nodes that are about to go down, and are drained for as long as they are there."""
    draining: set[str] = field(default_factory=set)
    """Nodes that get no new work; some may be away."""
    outdated: set[str] = field(default_factory=set)
    """Instances that run as their deployment was to before it changed: others replace them."""
    orphans: Orphans = field(default_factory=Orphans)
    moves: dict[str, list[str]] = field(default_factory=dict)
    """For instances with generations that are being migrated, the instances where these go."""
    ended: deque[EndedRequest] = field(default_factory=lambda: deque(maxlen=ENDED_KEPT))
    """The latest requests that have ended, for those who watch."""
    costs: MigrationCosts = field(default_factory=MigrationCosts)
    tenants: Tenants = field(default_factory=Tenants)
    changes: Changes = field(init=False)
    receipts: RecentReceipts = field(default_factory=RecentReceipts)
    _adapters: dict[str, set[str]] = field(default_factory=dict)
    """Names of adapters by that of their base."""

    def __post_init__(self) -> None:
        self.deliveries = Deliveries(self.fleet, self.zones)
        self.changes = Changes(lambda name: self._adapters.get(name, ()))

    def deployment(self, name: str) -> Deployment:
        """The deployment of this name.

        Raises:
            errors.DeploymentNotFound: There is none.
        """
        deployment = self.deployments.get(name)
        if deployment is None:
            raise errors.DeploymentNotFound(
                f"no deployment is named {name!r}; ListDeployments tells which there are"
            )
        return deployment

    def serving(self, name: str) -> Deployment:
        """The deployment whose instances serve requests for this one: its base, or itself.

        A chat template of an adapter's own takes the place of its base's.

        Raises:
            errors.DeploymentNotFound: There is none of this name.
        """
        deployment = self.deployment(name)
        if not deployment.spec.base:
            return deployment
        base, template = self.deployment(deployment.spec.base), deployment.spec.chat_template
        return replace(base, spec=replace(base.spec, chat_template=template)) if template else base

    def adapters_of(self, name: str) -> list[Deployment]:
        """The adapters over a deployment."""
        return [self.deployments[one] for one in sorted(self._adapters.get(name, ()))]

    def node(self, node_id: str) -> NodeView:
        """The node of this id.

        Raises:
            errors.NodeNotFound: There is none.
        """
        view = self.fleet.nodes.get(node_id)
        if view is None:
            raise errors.NodeNotFound(
                f"no node is named {node_id!r}; ListNodes tells which there are"
            )
        return view

    def working_node(self, node_id: str) -> NodeView:
        """The node of this id, if it takes new work.

        Raises:
            errors.NodeNotFound: There is none.
            errors.NodeDraining: It is being drained.
        """
        view = self.node(node_id)
        if node_id in self.draining:
            raise errors.NodeDraining(
                f"node {node_id} is being drained; take another one, or undrain it first"
            )
        return view

    def set_deployment(self, deployment: Deployment) -> None:
        """Adds a deployment, or replaces it."""
        self.deployments[deployment.name] = deployment
        if base := deployment.spec.base:
            self._adapters.setdefault(base, set()).add(deployment.name)
        self.needs.put(deployment.name, need_of(deployment))
        self.kept_replicas.pop(deployment.name, None)
        if least := deployment.spec.scaling.min_replicas:
            self.kept_replicas[deployment.name] = least
        self.changes.notify(deployment.name)

    def learn_model(self, name: str, model: ModelInfo) -> bool:
        """Takes in what a node has found out; says whether it is new."""
        known = self.deployments.get(name)
        if known and known.spec.base:
            model = replace(known.model, digest=model.digest, identity=model.identity)
        if known and model.private_bytes is None:  # as of a start, which takes no estimate
            model = model.with_private_of(known.model)
        if known is None or not model.digest or known.model == model:
            return False
        if known.model.identity not in ("", model.identity):
            return False  # of a start from before the deployment was rolled over
        self.set_deployment(replace(known, model=model))
        return True

    def drop_deployment(self, name: str) -> None:
        """Removes all that is kept of a deployment."""
        if (known := self.deployments.get(name)) and known.spec.base:
            self._adapters[known.spec.base].discard(name)
        by_name = (
            self.failed_starts,
            self.preparing,
            self.unprepared,
            self.learned,
            self.beyond_nodes,
        )
        for kept in (self.deployments, *by_name):
            kept.pop(name, None)
        self.kept_replicas.pop(name, None)
        self.needs.drop(name)
        self.service_times.forget(name)
        self.arrivals.forget(name)
        self.slots.forget_deployment(name)
        self.changes.notify(name)

    def shown(self, deployment: Deployment) -> Deployment:
        """A deployment as callers see it: an adapter runs on the engine that its base runs on."""
        base = self.deployments.get(deployment.spec.base)
        if base is None:
            return deployment
        engine = replace(deployment.spec.engine, engine=base.spec.engine.engine)
        return replace(deployment, spec=replace(deployment.spec, engine=engine))

    def prepared(self, deployment: Deployment) -> DeploymentState:
        """How far a deployment's checkpoint is."""
        if self.fleet.holds(deployment.model.digest):
            return DeploymentState.AVAILABLE
        if deployment.name in self.unprepared:
            return DeploymentState.FAILED
        return DeploymentState.PREPARING

    def tell_of_copies(self, before: NodeView | None, view: NodeView) -> None:
        """Tells the watchers of deployments whose checkpoint has come to a node, grown or gone."""
        had = before.copies if before else Copies()
        if had is view.copies:
            return
        keys = {key for key in had.keys() | view.copies if had.get(key) != view.copies.get(key)}
        digests = {digest for digest, _ in keys}
        for name, deployment in self.deployments.items():
            if deployment.model.digest in digests:
                self.changes.notify(name)

    def line_of(self, ticket: Ticket) -> RequestQueue[Ticket]:
        """Where a request waits."""
        return self.background if ticket.background else self.queue

    def is_asked_for(self, name: str) -> bool:
        """Whether a deployment has any request that somebody waits for."""
        uses = map(self.slots.uses.get, (one.instance_id for one in self.fleet.instances_of(name)))
        return self.queue.count(name) > 0 or any(use and use.is_busy for use in uses)

    def background_on(self, instance_id: str) -> list[Ticket]:
        """The requests on an instance that nobody waits for, those begun last first."""
        use = self.slots.uses.get(instance_id)
        if use is None or not use.background:
            return []
        there = [
            one
            for one in self.tickets.values()
            if one.background
            and one.assignment
            and one.assignment.instance.instance_id == instance_id
        ]
        return sorted(there, key=lambda one: one.dispatched_at, reverse=True)

    def first_start(self, name: str) -> StartUnderWay | None:
        """The start of a deployment that was decided on first, of those under way."""
        starts = (one for one in self.starts.values() if one.deployment.name == name)
        return next(starts, None)

    def ready_replicas(self, name: str) -> list[Instance]:
        """A deployment's instances that take requests."""
        instances = self.fleet.instances_of(name)
        return [one for one in instances if one.state is InstanceState.READY]

    def outdated_replicas(self, name: str) -> list[Instance]:
        """Those of them that others are to replace."""
        return [one for one in self.ready_replicas(name) if one.instance_id in self.outdated]

    def fail_waiting(self, name: str, error: errors.SllmError) -> None:
        """Ends all requests that wait for a deployment; those that come later may try again."""
        for ticket in self.queue.of(name):
            self.queue.remove(ticket)
            ticket.fail(error)
        if failed := self.failed_starts.get(name):
            self.failed_starts[name] = failed.forgiven()
        self.changes.notify(name)

    def snapshot(self) -> Snapshot:
        """What placement may look at now."""
        snapshot = self.fleet.snapshot(self.slots.uses, self._protected(), self.needs.frozen)
        return replace(
            snapshot,
            stop_seconds=self.service_times.stop_seconds,
            outdated=frozenset(self.outdated),
        )

    def snapshot_for_moves(self) -> Snapshot:
        """The same, with what placement needs to migrate running instances."""
        snapshot, cost = self.snapshot(), self.costs.cost
        if cost is None:
            return snapshot
        running: dict[str, list[Running]] = {}
        for ticket in self.tickets.values():
            if ticket.assignment and not ticket.stays:
                instance_id = ticket.assignment.instance.instance_id
                running.setdefault(instance_id, []).append(ticket.running())
        return replace(
            snapshot,
            running={key: tuple(requests) for key, requests in running.items()},
            migration=cost,
        )

    def _protected(self) -> frozenset[str]:
        """The instances that min_replicas keeps: of each deployment those used last."""
        kept: list[str] = []
        for name, least in self.kept_replicas.items():
            replicas = sorted(self.ready_replicas(name), key=self._last_used, reverse=True)
            kept += [one.instance_id for one in replicas[:least]]
        return frozenset(kept)

    def _last_used(self, instance: Instance) -> float:
        use = self.slots.uses.get(instance.instance_id)
        return use.last_used if use else 0.0
