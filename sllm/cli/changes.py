"""What has happened between two pictures of the cluster."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from sllm.client.types.nodes import Node
from sllm.client.types.operations import Cluster, InstanceLoad

Entry = TypeVar("Entry")


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that has happened."""

    kind: str
    """NODE, INSTANCE, CHECKPOINT or DEPLOYMENT."""
    name: str
    """Of the node, instance or deployment, or the checkpoint's digest."""
    what: str
    """In a word: ADDED, GONE, a state, ...; programs branch on it."""
    detail: str
    """In words. Empty: nothing more is known."""


def changes(before: Cluster, after: Cluster) -> Iterator[Change]:
    """What comes is told before what is on it or of it, and what goes after; in order of names."""
    deployed_before = {one.deployment for one in before.deployments}
    deployed_after = {one.deployment for one in after.deployments}
    for name in sorted(deployed_after - deployed_before):
        yield Change("DEPLOYMENT", name, "ADDED", "")
    for node, old, new in _pairs(_by_node(before), _by_node(after)):
        yield from _of_node(node, old, new)
    for instance, was, now in _pairs(_by_instance(before), _by_instance(after)):
        yield from _of_instance(instance, was, now)
    for name in sorted(deployed_before - deployed_after):
        yield Change("DEPLOYMENT", name, "GONE", "")


def _by_node(cluster: Cluster) -> dict[str, Node]:
    return {one.node_id: one for one in cluster.nodes}


def _by_instance(cluster: Cluster) -> dict[str, InstanceLoad]:
    return {one.instance.instance_id: one for one in cluster.instances}


def _pairs(
    before: Mapping[str, Entry], after: Mapping[str, Entry]
) -> Iterator[tuple[str, Entry | None, Entry | None]]:
    for name in sorted(before.keys() | after.keys()):
        yield name, before.get(name), after.get(name)


def _of_node(name: str, old: Node | None, new: Node | None) -> Iterator[Change]:
    if new is None:
        yield Change("NODE", name, "GONE", "")
        return
    if old is None:
        yield Change("NODE", name, "ADDED", f"at {new.address}")
    elif old.connected_at != new.connected_at:
        yield Change("NODE", name, "RECONNECTED", f"at {new.address}")
    if new.draining != (old.draining if old else False):
        yield Change("NODE", name, "DRAINING" if new.draining else "UNDRAINED", "")
    yield from _of_copies(name, old, new)


def _of_copies(name: str, old: Node | None, new: Node) -> Iterator[Change]:
    before = {(one.digest, one.tier) for one in old.copies} if old else set()
    after = {(one.digest, one.tier) for one in new.copies}
    for digest, tier in sorted(after - before):
        yield Change("CHECKPOINT", digest, "ADDED", f"{tier} of {name}")
    for digest, tier in sorted(before - after):
        yield Change("CHECKPOINT", digest, "GONE", f"{tier} of {name}")


def _of_instance(name: str, old: InstanceLoad | None, new: InstanceLoad | None) -> Iterator[Change]:
    known = new or old
    assert known is not None
    one = known.instance
    detail = f"{one.deployment} on {one.node_id}"
    if new is None:
        yield Change("INSTANCE", name, "GONE", detail)
    elif old is None or old.instance.state is not new.instance.state:
        yield Change("INSTANCE", name, one.state, detail)
