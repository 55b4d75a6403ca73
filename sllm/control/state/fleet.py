"""The fleet as nodes report it, and as the control plane is about to change it."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType

from sllm.control.cluster.instances import Instance, InstanceState, Planned
from sllm.control.cluster.needs import Need
from sllm.control.cluster.nodes import NodeView, keys_of
from sllm.control.cluster.snapshot import Snapshot, Typical
from sllm.control.cluster.tiers import Copies
from sllm.control.cluster.usage import Use
from sllm.control.cluster.zones import NOWHERE, Zones
from sllm.control.placement.ranking import Table
from sllm.control.state.index import Index
from sllm.control.state.observations import Observations
from sllm.control.types.reports import Delta, Full, Report


class Fleet:
    """All nodes. Every change replaces the views that it touches; snapshots share the rest."""

    def __init__(self, zones: Zones = NOWHERE, *, peers: bool = True) -> None:
        self.peers = peers
        """Whether nodes have checkpoints from one another."""
        self._nodes: dict[str, NodeView] = {}
        self._revisions: dict[str, int] = {}
        self._by_deployment: Index[tuple[Instance, ...]] = Index()
        self._node_of: dict[str, str] = {}
        self._holders: Index[frozenset[str]] = Index()
        self._observations = Observations(zones)
        self._table: Table | None = None
        """As of the last snapshot. None: nodes have come or gone."""
        self._changed: set[str] = set()
        """Nodes of which the table shows an older view."""

    @property
    def nodes(self) -> Mapping[str, NodeView]:
        """The present view of every node."""
        return self._nodes

    @property
    def deployments(self) -> Iterable[str]:
        """Names of those that have present instances."""
        return self._by_deployment

    def instances_of(self, deployment: str) -> tuple[Instance, ...]:
        """Present instances: planned or reported, and not leaving."""
        return self._by_deployment.get(deployment, ())

    def instance(self, instance_id: str) -> Instance | None:
        """A present instance."""
        node = self._nodes.get(self._node_of.get(instance_id, ""))
        if node is None:
            return None
        return next((one for one in node.present if one.instance_id == instance_id), None)

    def known_instances(self) -> Iterator[Instance]:
        """All instances; those that are leaving count as DRAINING."""
        for view in self._nodes.values():
            yield from view.present
            leaving = (view.instances[key] for key in view.leaving if key in view.instances)
            yield from (replace(one, state=InstanceState.DRAINING) for one in leaving)

    def holds(self, digest: str) -> bool:
        """Whether any node has a whole copy of a checkpoint."""
        nodes = (self._nodes[node_id] for node_id in self._holders.get(digest, ()))
        return any(copy.whole for node in nodes for copy in node.copies_of(digest))

    @property
    def typical(self) -> Typical:
        """What nodes observe, for those that have not observed it themselves."""
        return self._observations.typical()

    def holders(self, digest: str) -> frozenset[str]:
        """Nodes that hold any part of a checkpoint, or have started it."""
        return frozenset(self._holders.get(digest, ()))

    def snapshot(
        self,
        uses: Mapping[str, Use],
        protected: frozenset[str],
        needs: Mapping[str, Need] = MappingProxyType({}),
    ) -> Snapshot:
        """What placement may look at. `needs` must not change afterwards."""
        typical = self._observations.typical()
        if self._table is None:
            self._table = Table(self._nodes, typical)
        else:
            self._table = self._table.updated(self._nodes, self._changed, typical)
        self._changed.clear()
        return Snapshot(
            nodes=dict(self._nodes),
            instances=self._by_deployment.frozen,
            uses=dict(uses),
            holders=self._holders.frozen,
            protected=protected,
            typical=typical,
            needs=needs,
            memo={Table: self._table},
        )

    # --- what nodes say -----------------------------------------------------------------------

    def apply(self, report: Report, now: float) -> bool:
        """Takes a report in; `now` is in seconds since the epoch.

        Returns:
            False if reports were missed, so that the node has to send a full one.
        """
        if isinstance(report.body, Full):
            self._replace(self._joined(report.body, now))
        elif not self._follows(report):
            return False
        elif report.body is not None:
            self._replace(_changed(self._nodes[report.node_id], report.body))
        self._revisions[report.node_id] = report.revision
        return True

    def remove(self, node_id: str) -> tuple[Instance, ...]:
        """Forgets a node that is lost, and returns the instances that went with it."""
        view = self._nodes.pop(node_id, None)
        if view is None:
            return ()
        self._revisions.pop(node_id, None)
        self._index(view, None)
        return view.present

    def _follows(self, report: Report) -> bool:
        last = self._revisions.get(report.node_id)
        step = 0 if report.body is None else 1
        return last is not None and report.revision == last + step

    def _joined(self, full: Full, now: float) -> NodeView:
        before = self._nodes.get(full.facts.node_id)
        known = before.instances if before else {}
        instances = {one.instance_id: _forward(one, known) for one in _alive(full.instances)}
        return NodeView(
            facts=full.facts,
            copies=Copies.of(full.copies),
            instances=instances,
            # What was decided goes on over a new stream of a node: only what it tells is new.
            planned=before.planned if before else {},
            leaving=before.leaving & instances.keys() if before else frozenset(),
            connected_at=before.connected_at if before else now,
        )

    # --- what the control plane is about to do ------------------------------------------------

    def plan(self, planned: Planned) -> None:
        """Keeps room for an instance whose start has been decided on."""
        view = self._nodes[planned.instance.node_id]
        self._replace(_with(view, planned={**view.planned, planned.instance.instance_id: planned}))

    def settle(self, node_id: str, instance_id: str, ready: Instance | None) -> None:
        """Ends a plan: with the instance that is ready, or with None if the start failed."""
        view = self._nodes.get(node_id)
        if view is None:
            return
        instances = dict(view.instances)
        if ready:
            instances[instance_id] = _forward(ready, view.instances)
        planned = {key: plan for key, plan in view.planned.items() if key != instance_id}
        self._replace(_with(view, planned=planned, instances=instances))

    def leave(self, instance_id: str) -> None:
        """Counts an instance's room as free, and gives it no more requests: it is being stopped."""
        view = self._nodes.get(self._node_of.get(instance_id, ""))
        if view:
            self._replace(_with(view, leaving=view.leaving | {instance_id}))

    def start_ended(self, estimate: float, actual: float) -> None:
        """Takes in how long a start has taken, in seconds, beside what was expected."""
        self._observations.start_ended(estimate, actual)

    def stay(self, node_id: str, instance_id: str) -> None:
        """Takes `leave` back: the instance could not be stopped."""
        view = self._nodes.get(node_id)
        if view:
            self._replace(_with(view, leaving=view.leaving - {instance_id}))

    def drain(self, instance_id: str) -> None:
        """Gives an instance no more requests; it holds its room until it is gone."""
        view = self._nodes.get(self._node_of.get(instance_id, ""))
        if view and (instance := view.instances.get(instance_id)):
            draining = replace(instance, state=InstanceState.DRAINING)
            self._replace(_with(view, instances={**view.instances, instance_id: draining}))

    # --- indices ------------------------------------------------------------------------------

    def _replace(self, view: NodeView) -> None:
        before = self._nodes.get(view.node_id)
        self._nodes[view.node_id] = view
        self._index(before, view)

    def _index(self, before: NodeView | None, after: NodeView | None) -> None:
        self._observations.replace(before.facts if before else None, after.facts if after else None)
        self._index_instances(before, after)
        self._index_keys(before, after)
        if before and after:
            self._changed.add(after.node_id)
        else:
            self._table = None

    def _index_instances(self, before: NodeView | None, after: NodeView | None) -> None:
        old = before.present if before else ()
        new = after.present if after else ()
        if old == new:
            return
        node_id = (before or after).node_id  # type: ignore[union-attr]  # one of them is there
        for instance in old:
            self._node_of.pop(instance.instance_id, None)
        for instance in new:
            self._node_of[instance.instance_id] = node_id
        for deployment in {one.deployment for one in (*old, *new)}:
            self._index_deployment(deployment, node_id, new)

    def _index_deployment(self, deployment: str, node_id: str, new: tuple[Instance, ...]) -> None:
        elsewhere = [one for one in self.instances_of(deployment) if one.node_id != node_id]
        here = [one for one in new if one.deployment == deployment]
        if elsewhere or here:
            self._by_deployment.put(deployment, (*elsewhere, *here))
        else:
            self._by_deployment.drop(deployment)

    def _index_keys(self, before: NodeView | None, after: NodeView | None) -> None:
        if before and after and _keyed(before) == _keyed(after):
            return
        if self.peers:
            self._observations.hold(before, after)
        node_id = (before or after).node_id  # type: ignore[union-attr]  # one of them is there
        had = keys_of(before) if before else set()
        has = keys_of(after) if after else set()
        for key in had ^ has:
            nodes = self._holders.get(key, frozenset())
            nodes = nodes | {node_id} if key in has else nodes - {node_id}
            if nodes:
                self._holders.put(key, nodes)
            else:
                self._holders.drop(key)

    def check_integrity(self) -> None:
        """Raises AssertionError if the indices differ from the views that they index."""
        present = [one for view in self._nodes.values() for one in view.present]
        assert {one.instance_id: one.node_id for one in present} == self._node_of
        indexed = [one for ones in self._by_deployment.values() for one in ones]
        assert sorted(map(repr, present)) == sorted(map(repr, indexed))
        assert self._nodes.keys() == self._revisions.keys()
        for node_id, view in self._nodes.items():
            held = {key for key, nodes in self._holders.items() if node_id in nodes}
            assert held == keys_of(view)


def _with(
    view: NodeView,
    *,
    instances: Mapping[str, Instance] | None = None,
    planned: Mapping[str, Planned] | None = None,
    leaving: frozenset[str] | None = None,
) -> NodeView:
    """Another view: `dataclasses.replace` would hand on what was worked out about the old one."""
    return NodeView(
        facts=view.facts,
        copies=view.copies,
        instances=view.instances if instances is None else instances,
        planned=view.planned if planned is None else planned,
        leaving=view.leaving if leaving is None else leaving,
        connected_at=view.connected_at,
    )


def _changed(view: NodeView, delta: Delta) -> NodeView:
    copies = {**view.copies, **{(copy.digest, copy.tier): copy for copy in delta.copies}}
    instances = dict(view.instances)
    for instance in delta.instances:
        instances[instance.instance_id] = _forward(instance, view.instances)
    alive = {one.instance_id: one for one in _alive(instances.values())}
    facts = delta.facts or view.facts
    return NodeView(
        facts=replace(facts, init_times=view.facts.init_times.updated(delta.init_times)),
        copies=Copies.of(copies.values()) if delta.copies else view.copies,
        instances=alive,
        planned=view.planned,
        leaving=view.leaving & alive.keys(),
        connected_at=view.connected_at,
    )


def _alive(instances: Iterable[Instance]) -> list[Instance]:
    return [one for one in instances if one.state is not InstanceState.GONE]


def _forward(instance: Instance, known: Mapping[str, Instance]) -> Instance:
    """`instance`, unless an older report is overtaken: a state only goes forward."""
    before = known.get(instance.instance_id)
    if before and before.state > instance.state:
        return replace(instance, state=before.state, digest=instance.digest or before.digest)
    return instance


def _keyed(view: NodeView) -> tuple[int, int, str]:
    """Equal only for views that hold and have started the same: neither mapping ever changes."""
    return id(view.copies), id(view.facts.init_times), view.facts.zone
