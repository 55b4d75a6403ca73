"""Short ways to write nodes, instances and needs."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from sllm.control.cluster.instances import Instance, InstanceState
from sllm.control.cluster.needs import Checkpoint, Need
from sllm.control.cluster.nodes import NodeFacts, NodeView, keys_of
from sllm.control.cluster.snapshot import Snapshot, Typical
from sllm.control.cluster.specs import Deployment, DeploymentSpec, ModelInfo
from sllm.control.cluster.tiers import Copies, Copy, Link, Tier, TierUsage
from sllm.control.cluster.usage import Use
from sllm.control.cluster.zones import NOWHERE, Zones
from sllm.control.state.observations import Observations
from sllm.control.types.calls import AnswerFormat, Call

SLOW, FAST = 100.0, 1000.0
"""Bytes per second from the source to SSD, and from SSD to the pool."""
LINKS = {(Tier.REMOTE, Tier.SSD): Link(SLOW), (Tier.SSD, Tier.DRAM): Link(FAST)}


def facts(
    node_id: str = "n1",
    *,
    dram: int = 1000,
    kv: int = 1000,
    links: Mapping[tuple[Tier, Tier], Link] = LINKS,
    init: float | None = 1.0,
) -> NodeFacts:
    return NodeFacts(
        node_id=node_id,
        address="localhost:1",
        tiers={Tier.SSD: TierUsage(10**9, 0), Tier.DRAM: TierUsage(dram, 0)},
        links=links,
        kv_capacity=kv,
        init_time=init,
    )


def view(
    of: NodeFacts | None = None,
    *,
    copies: Iterable[Copy] = (),
    instances: Iterable[Instance] = (),
) -> NodeView:
    return NodeView(
        of or facts(),
        Copies.of(copies),
        {one.instance_id: one for one in instances},
    )


def copy(
    digest: str = "d",
    tier: Tier = Tier.SSD,
    *,
    size: int = 100,
    resident: int | None = None,
    leased: bool = False,
    sources: tuple[str, ...] = (),
) -> Copy:
    return Copy(digest, tier, size, size if resident is None else resident, sources, leased)


def instance(
    instance_id: str = "i1",
    deployment: str = "other",
    *,
    node_id: str = "n1",
    state: InstanceState = InstanceState.READY,
    kv: int = 100,
    digest: str = "",
) -> Instance:
    return Instance(instance_id, deployment, node_id, state, kv, digest)


def need(
    deployment: str = "m",
    *,
    size: int = 100,
    kv: int = 100,
    least_kv: int = 10,
    digest: str = "d",
    max_concurrency: int = 2,
    engine: str = "transformers",
) -> Need:
    checkpoint = Checkpoint("file:///m", size, digest)
    return Need(deployment, checkpoint, kv, least_kv, max_concurrency, engine)


def snapshot(
    *views: NodeView,
    uses: Mapping[str, Use] | None = None,
    protected: Iterable[str] = (),
    zones: Zones = NOWHERE,
) -> Snapshot:
    instances: dict[str, tuple[Instance, ...]] = {}
    for node in views:
        for one in node.present:
            instances[one.deployment] = (*instances.get(one.deployment, ()), one)
    ready = [one for ones in instances.values() for one in ones if one.state == InstanceState.READY]
    keys = {key for node in views for key in keys_of(node)}
    return Snapshot(
        nodes={node.node_id: node for node in views},
        instances=instances,
        uses={one.instance_id: Use(one.node_id, 0, 0.0) for one in ready} | dict(uses or {}),
        holders={
            key: frozenset(one.node_id for one in views if key in keys_of(one)) for key in keys
        },
        protected=frozenset(protected),
        typical=typical_of(views, zones),
    )


def deployment(name: str = "tiny", **model: Any) -> Deployment:
    info = ModelInfo("Fake", size_bytes=100, context_tokens=1024, kv_bytes_per_token=2)
    return Deployment(DeploymentSpec(name, "file:///m"), replace(info, **model), 1.0)


def call(request_id: str, content: str = "content") -> Call[bytes]:
    """A call whose answer is kept as it is."""
    return Call(request_id, content, AnswerFormat(bytes, bytes))


def typical_of(nodes: Iterable[NodeView], zones: Zones = NOWHERE) -> Typical:
    """The medians of what `nodes` have observed."""
    observations = Observations(zones)
    for node in nodes:
        observations.replace(None, node.facts)
        observations.hold(None, node)
    return observations.typical()
