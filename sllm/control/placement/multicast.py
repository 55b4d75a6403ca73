"""From which other nodes a node gets a checkpoint: a pure plan.

Nodes that get one at the same time are fellows: each asks those that have it, or the source, for a
part, and they swap the parts. So it leaves whoever has it once, and all of them have it after
little more than one copy's time. Groups of fellows stand in a tree: the first gets the checkpoint
from those that hold it, every other from the group above, which gives on what it has got.

Fellows are of one zone, and nodes have a checkpoint from those that are nearest: it crosses the way
to a zone once for all in it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from sllm.control.cluster.nodes import NodeView
from sllm.control.cluster.tiers import Copy, Tier
from sllm.control.cluster.zones import NOWHERE, Zones
from sllm.control.placement.start_estimate import fetches
from sllm.control.types.givers import FormGivers, Giver, Givers

GROUP: Final = 8
"""Fellows that swap with one another: each has a connection to each."""
MOST_FORMS: Final = 8
"""Forms of which a node is told: engines of several versions, on several kinds of processors."""
MOST_HOLDERS: Final = 8
"""Nodes that hold a checkpoint of which a newcomer is told."""
_BRANCHES: Final = 2
"""Groups that get a checkpoint from one group."""


def givers_for(
    newcomer: NodeView,
    nodes: Mapping[str, NodeView],
    digest: str,
    holders: Iterable[str],
    arriving: Sequence[str],
    zones: Zones = NOWHERE,
) -> Givers | None:
    """Whom a node is told of that is to get a checkpoint. None: of nobody.

    Args:
        newcomer: the node.
        nodes: all that are there.
        digest: of the checkpoint. Empty: it is not known.
        holders: nodes that may hold the checkpoint.
        arriving: those that are getting it, in the order in which they were told to.
        zones: how far it is between them.
    """
    if not fetches(newcomer):
        return None
    others = [nodes[one] for one in arriving if one != newcomer.node_id and one in nodes]
    near = [one for one in others if one.facts.zone == newcomer.facts.zone]
    group = len(near) // GROUP
    if group:
        upstream = _members(near, (group - 1) // _BRANCHES)
    else:
        upstream = _holders(newcomer, nodes, digest, holders, set(arriving), zones)
        upstream = upstream or _first_group(newcomer, others)
    found = (
        *(_giver(one, fellow=True) for one in near[group * GROUP :]),
        *(_giver(one, fellow=False) for one in upstream),
    )
    return Givers(digest, found) if found else None


def forms_for(
    newcomer: NodeView,
    nodes: Mapping[str, NodeView],
    digest: str,
    label: str,
    holders: Iterable[str],
    zones: Zones = NOWHERE,
) -> tuple[FormGivers, ...]:
    """Of whom a node is told that have made ready what it is to start. It knows its own form.

    Args:
        newcomer: the node.
        nodes: all that are there.
        digest: of the checkpoint, as it is published.
        label: what reads the weights; see `WeightForm.label`.
        holders: nodes that may hold anything of it.
        zones: how far it is between them.
    """
    if not fetches(newcomer):
        return ()
    made = _made(nodes, digest, label, holders)
    return tuple(
        FormGivers(form, Givers(key, tuple(_giver(one, fellow=False) for one in nearest)))
        for form, key in sorted(made)[:MOST_FORMS]
        if (nearest := _nearest(newcomer, nodes, made[form, key], zones))
    )


def _made(
    nodes: Mapping[str, NodeView], digest: str, label: str, holders: Iterable[str]
) -> Mapping[tuple[str, str], Mapping[str, Sequence[Copy]]]:
    """Nodes' copies of what was made ready, by form and by digest of what was made."""
    found: dict[tuple[str, str], dict[str, list[Copy]]] = {}
    for name in holders:
        for copy in nodes[name].made_of(digest, label) if name in nodes else ():
            if copy.form and copy.whole:
                by_node = found.setdefault((copy.form.name, copy.digest), {})
                by_node.setdefault(name, []).append(copy)
    return found


def _giver(node: NodeView, *, fellow: bool) -> Giver:
    return Giver(node.node_id, node.facts.address, fellow=fellow)


def _members(nodes: Sequence[NodeView], group: int) -> list[NodeView]:
    return list(nodes[group * GROUP : (group + 1) * GROUP])


def _first_group(newcomer: NodeView, others: Sequence[NodeView]) -> list[NodeView]:
    """Of the zone that began to get it first, if that is another one."""
    zone = others[0].facts.zone if others else newcomer.facts.zone
    if zone == newcomer.facts.zone:
        return []
    return _members([one for one in others if one.facts.zone == zone], 0)


def _holders(
    newcomer: NodeView,
    nodes: Mapping[str, NodeView],
    digest: str,
    holders: Iterable[str],
    arriving: set[str],
    zones: Zones,
) -> list[NodeView]:
    copies = {
        name: [copy for copy in nodes[name].copies_of(digest) if copy.whole]
        for name in holders
        if name in nodes and name not in arriving
    }
    return _nearest(newcomer, nodes, copies, zones)


def _nearest(
    newcomer: NodeView,
    nodes: Mapping[str, NodeView],
    copies: Mapping[str, Sequence[Copy]],
    zones: Zones,
) -> list[NodeView]:
    """The nearest of those that have all of it, memory before disk, and less to read first."""
    ranked = []
    for name, held in copies.items():
        node = nodes[name]
        if held and node is not newcomer and not node.facts.leaving:
            link = node.facts.links.get((Tier.SSD, Tier.DRAM))
            busy = link.queued_bytes if link else 0
            far = zones.seconds(newcomer.facts.zone, node.facts.zone)
            on_disk = all(copy.tier is not Tier.DRAM for copy in held)
            ranked.append((far, on_disk, busy, name, node))
    ranked.sort(key=lambda one: one[:4])
    return [node for far, *_, node in ranked if far == ranked[0][0]][:MOST_HOLDERS]
