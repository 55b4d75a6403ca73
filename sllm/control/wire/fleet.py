"""Nodes and instances, from and to the protocol's messages."""

from collections.abc import Iterable

from google.protobuf.duration_pb2 import Duration
from serverlessllm.v1 import fleet_service_pb2 as fleet_pb
from serverlessllm.v1 import types_pb2 as pb

from sllm import bounds, errors
from sllm.control.cluster.init_times import InitKey, InitTime, InitTimes
from sllm.control.cluster.instances import Instance, InstanceState, LoadedAdapter
from sllm.control.cluster.nodes import Device, NodeFacts, NodeMemory, NodeView
from sllm.control.cluster.specs import TRANSFORMERS
from sllm.control.cluster.tiers import Copy, Hold, Link, LinkKey, Tier, TierUsage
from sllm.control.types.reports import Delta, Full, Report
from sllm.control.wire import common, deployments

# --- what nodes report ------------------------------------------------------------------------


def report(request: fleet_pb.ReportRequest) -> Report:
    """A node's message.

    Raises:
        errors.InvalidArgument: Something in it is out of its bounds, or unknown here.
    """
    if not bounds.name(request.node_id, "node_id"):
        raise errors.InvalidArgument("node_id is empty; a node reports under its id")
    body: Full | Delta | None = None
    if request.HasField("full"):
        node, instances = request.full.node, request.full.instances
        facts = _facts(node, request.node_id)
        body = Full(facts, _copies(node.copies), _instances(instances, request.node_id))
    elif request.HasField("delta"):
        delta = request.delta
        changed = _facts(delta.node, request.node_id) if delta.HasField("node") else None
        body = Delta(
            changed,
            _copies(delta.copies),
            _instances(delta.instances, request.node_id),
            _init_times(delta.init_observations),
        )
    return Report(request.node_id, request.revision, body)


def _facts(node: pb.Node, node_id: str) -> NodeFacts:
    return NodeFacts(
        node_id=node_id,
        address=bounds.address(node.address, "a node's address"),
        host=node.host,
        leaving=node.leaving,
        tiers={
            _tier(usage.tier): TierUsage(
                _bytes(usage.capacity_bytes), _bytes(usage.used_bytes), usage.problem
            )
            for usage in node.tiers
        },
        links={(_tier(link.from_tier), _tier(link.to_tier)): _link(link) for link in node.links},
        kv_capacity=_bytes(node.kv_capacity_bytes),
        init_time=_duration(node.init_time) if node.HasField("init_time") else None,
        init_times=InitTimes(_init_times(node.init_observations)),
        devices=tuple(map(_device, node.devices)),
        memory=_memory(node.memory) if node.HasField("memory") else None,
        engines={one.name: one.ready for one in node.engines} or {TRANSFORMERS: True},
        max_tensor_parallel=bounds.count(node.max_tensor_parallel, "max_tensor_parallel") or 1,
    )


def _memory(memory: pb.NodeMemory) -> NodeMemory:
    return NodeMemory(
        _bytes(memory.total_bytes),
        _bytes(memory.capacity_bytes),
        _bytes(memory.used_bytes),
        _bytes(memory.instance_bytes),
        bounds.count(memory.max_instances, "max_instances"),
    )


def _memory_message(memory: NodeMemory) -> pb.NodeMemory:
    return pb.NodeMemory(
        total_bytes=memory.total_bytes,
        capacity_bytes=memory.capacity_bytes,
        used_bytes=memory.used_bytes,
        instance_bytes=memory.instance_bytes,
        max_instances=memory.max_instances,
    )


def _link(link: pb.LinkObservation) -> Link:
    speed = bounds.rate(link.bytes_per_second, "a link's speed")
    return Link(speed, _bytes(link.queued_bytes), _bytes(link.in_flight_bytes))


def _device(one: pb.Device) -> Device:
    return Device(
        bounds.count(one.index, "a device's index"),
        one.name,
        one.uuid,
        _bytes(one.total_bytes),
        _bytes(one.free_bytes),
        _bytes(one.weights_capacity_bytes),
        _bytes(one.weights_used_bytes),
        _bytes(one.kv_capacity_bytes),
        _bytes(one.kv_used_bytes),
        _bytes(one.reserved_bytes),
        _bytes(one.idle_bytes),
    )


def _init_times(observations: Iterable[pb.InitObservation]) -> dict[InitKey, InitTime]:
    return {
        (one.digest, one.engine): InitTime(
            _bytes(one.size_bytes), _duration(one.prepare), _duration(one.attach)
        )
        for one in observations
    }


def _copies(copies: Iterable[pb.CheckpointCopy]) -> tuple[Copy, ...]:
    return tuple(
        Copy(
            digest=one.digest,
            tier=_tier(one.tier),
            size_bytes=_bytes(one.size_bytes),
            resident_bytes=_bytes(one.resident_bytes),
            sources=tuple(one.sources),
            leased=one.leased,
            holds=tuple(map(_hold, one.holds)),
            made_of=one.made_of,
            made_for=one.made_for,
        )
        for one in copies
    )


def _hold(one: pb.Hold) -> Hold:
    ends = one.HasField("expires_at")
    expires_at = bounds.moment(one.expires_at, "a hold's end") if ends else None
    return Hold(one.hold_id, expires_at)


def _instances(instances: Iterable[pb.Instance], node_id: str) -> tuple[Instance, ...]:
    return tuple(instance(one, node_id) for one in instances)


def instance(one: pb.Instance, node_id: str) -> Instance:
    """An instance as the node `node_id` reports it."""
    device = bounds.count(one.device_index, "a device's index")
    return Instance(
        instance_id=bounds.name(one.instance_id, "instance_id"),
        deployment=one.deployment,
        node_id=node_id,
        state=bounds.member(one.state, InstanceState, "an instance's state"),
        kv_bytes=_bytes(one.kv_bytes),
        digest=one.digest,
        running=bounds.count(one.running_requests, "running_requests"),
        started_at=bounds.moment(one.started_at, "started_at"),
        worker_pid=one.worker_pid,
        unread=tuple(one.unread_request_ids),
        device=device if one.HasField("device_index") else None,
        identity=one.identity,
        own_bytes=_bytes(one.own_bytes),
        engine=one.engine,
        private_bytes=_bytes(one.private_bytes) if one.HasField("private_bytes") else None,
        config=deployments.engine_config(one.config) if one.HasField("config") else None,
        adapters=tuple(
            LoadedAdapter(each.deployment, each.identity, each.digest) for each in one.adapters
        ),
    )


def _tier(value: int) -> Tier:
    return bounds.member(value, Tier, "tier")


def _bytes(value: int) -> int:
    return bounds.count(value, "a number of bytes")


def _duration(value: Duration) -> float:
    return bounds.duration(value, "a duration")


# --- what operators see -----------------------------------------------------------------------


def node_message(view: NodeView, *, draining: bool = False) -> pb.Node:
    """A node as operators see it."""
    facts = view.facts
    return pb.Node(
        node_id=facts.node_id,
        address=facts.address,
        host=facts.host,
        tiers=[
            pb.TierUsage(
                tier=pb.Tier.ValueType(tier),
                capacity_bytes=usage.capacity_bytes,
                used_bytes=usage.used_bytes,
                problem=usage.problem,
            )
            for tier, usage in facts.tiers.items()
        ],
        kv_capacity_bytes=facts.kv_capacity,
        kv_used_bytes=view.kv_held,
        copies=[_copy_message(one) for one in view.copies.values()],
        links=[_link_message(key, link) for key, link in facts.links.items()],
        init_time=common.optional_duration(facts.init_time),
        init_observations=[
            _init_time_message(key, time) for key, time in facts.init_times.by_model.items()
        ],
        connected_at=common.timestamp(view.connected_at),
        draining=draining,
        devices=[_device_message(one) for one in facts.devices],
        memory=_memory_message(facts.memory) if facts.memory else None,
        engines=[pb.NodeEngine(name=name, ready=ready) for name, ready in facts.engines.items()],
        max_tensor_parallel=facts.max_tensor_parallel,
    )


def _device_message(one: Device) -> pb.Device:
    return pb.Device(
        index=one.index,
        name=one.name,
        uuid=one.uuid,
        total_bytes=one.total_bytes,
        free_bytes=one.free_bytes,
        weights_capacity_bytes=one.weights_capacity_bytes,
        weights_used_bytes=one.weights_used_bytes,
        kv_capacity_bytes=one.kv_capacity_bytes,
        kv_used_bytes=one.kv_used_bytes,
        reserved_bytes=one.reserved_bytes,
        idle_bytes=one.idle_bytes,
    )


def _copy_message(one: Copy) -> pb.CheckpointCopy:
    return pb.CheckpointCopy(
        digest=one.digest,
        tier=pb.Tier.ValueType(one.tier),
        size_bytes=one.size_bytes,
        resident_bytes=one.resident_bytes,
        sources=one.sources,
        leased=one.leased,
        holds=[
            pb.Hold(hold_id=hold.hold_id, expires_at=common.optional_timestamp(hold.expires_at))
            for hold in one.holds
        ],
        made_of=one.made_of,
        made_for=one.made_for,
    )


def _link_message(key: LinkKey, link: Link) -> pb.LinkObservation:
    return pb.LinkObservation(
        from_tier=pb.Tier.ValueType(key[0]),
        to_tier=pb.Tier.ValueType(key[1]),
        bytes_per_second=link.bytes_per_second,
        queued_bytes=link.queued_bytes,
        in_flight_bytes=link.in_flight_bytes,
    )


def _init_time_message(key: InitKey, time: InitTime) -> pb.InitObservation:
    digest, engine = key
    return pb.InitObservation(
        digest=digest,
        engine=engine,
        size_bytes=time.size_bytes,
        prepare=common.duration(time.prepare),
        attach=common.duration(time.attach),
    )


def instance_message(one: Instance, orphan_until: float | None = None) -> pb.Instance:
    """An instance as operators see it; `orphan_until`: when it ends if nothing explains it."""
    return pb.Instance(
        instance_id=one.instance_id,
        deployment=one.deployment,
        node_id=one.node_id,
        state=pb.InstanceState.ValueType(one.state),
        running_requests=one.running,
        kv_bytes=one.kv_bytes,
        digest=one.digest,
        started_at=common.timestamp(one.started_at),
        worker_pid=one.worker_pid,
        unread_request_ids=one.unread,
        orphan_until=common.optional_timestamp(orphan_until),
        identity=one.identity,
        own_bytes=one.own_bytes,
        engine=one.engine,
        private_bytes=one.private_bytes,
        config=deployments.engine_message(one.config) if one.config else None,
        adapters=[
            pb.LoadedAdapter(deployment=each.deployment, identity=each.identity, digest=each.digest)
            for each in one.adapters
        ],
    )
