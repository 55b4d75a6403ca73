"""What nodes report of themselves, from the protocol's messages."""

from collections.abc import Iterable

from google.protobuf.duration_pb2 import Duration
from serverlessllm.v1 import fleet_service_pb2 as fleet_pb
from serverlessllm.v1 import types_pb2 as pb

from sllm import bounds, errors
from sllm.checkpoint.format.form import WeightForm
from sllm.control.cluster.init_times import InitKey, InitTime, InitTimes
from sllm.control.cluster.instances import Instance, InstanceState, KvShare, LoadedAdapter
from sllm.control.cluster.nodes import Device, NodeFacts, NodeMemory, UnmadeForm
from sllm.control.cluster.specs import TRANSFORMERS
from sllm.control.cluster.tiers import Copy, Hold, Link, Tier, TierUsage
from sllm.control.types.reports import Delta, Full, Report
from sllm.control.wire import deployments, prefixes


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
        body = Full(
            facts,
            _copies(node.copies),
            _instances(instances, request.node_id),
            prefixes.kept(request.full.kept),
        )
    elif request.HasField("delta"):
        delta = request.delta
        changed = _facts(delta.node, request.node_id) if delta.HasField("node") else None
        body = Delta(
            changed,
            _copies(delta.copies),
            _instances(delta.instances, request.node_id),
            _init_times(delta.init_observations),
            prefixes.kept(delta.kept),
            tuple(delta.kept.gone),
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
            if _is_known(usage.tier)
        },
        links={
            (_tier(link.from_tier), _tier(link.to_tier)): _link(link)
            for link in node.links
            if _is_known(link.from_tier) and _is_known(link.to_tier)
        },
        kv_capacity=_bytes(node.kv_capacity_bytes),
        init_time=_duration(node.init_time) if node.HasField("init_time") else None,
        init_times=InitTimes(_init_times(node.init_observations)),
        devices=tuple(map(_device, node.devices)),
        memory=_memory(node.memory) if node.HasField("memory") else None,
        engines={one.name: one.ready for one in node.engines} or {TRANSFORMERS: True},
        max_tensor_parallel=bounds.count(node.max_tensor_parallel, "max_tensor_parallel") or 1,
        zone=bounds.zone(node.zone, "zone"),
        unmade_forms=tuple(
            UnmadeForm(one.digest, one.made_for, one.problem) for one in node.unmade_forms
        ),
    )


def _memory(memory: pb.NodeMemory) -> NodeMemory:
    return NodeMemory(
        _bytes(memory.total_bytes),
        _bytes(memory.capacity_bytes),
        _bytes(memory.used_bytes),
        _bytes(memory.instance_bytes),
        bounds.count(memory.max_instances, "max_instances"),
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
        InitKey(one.digest, one.engine, one.ready_made): InitTime(
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
            form=_form(one.form) if one.HasField("form") else None,
            private_bytes=_bytes(one.private_bytes) if one.HasField("private_bytes") else None,
        )
        for one in copies
        if _is_known(one.tier)
    )


def _form(one: pb.WeightForm) -> WeightForm:
    return WeightForm(
        name=one.name,
        engine=one.engine,
        ranks=max(1, one.ranks),
        versions=dict(one.versions),
        kernels=one.kernels,
        dtype=one.dtype,
        made_of=one.made_of,
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
        ready_made=one.ready_made,
        kv_share=_kv_share(one.kv_share) if one.HasField("kv_share") else None,
    )


def _kv_share(one: pb.KvShare) -> KvShare:
    return KvShare(_bytes(one.size_bytes), _bytes(one.used_bytes))


def _is_known(tier: int) -> bool:
    """Whether a tier is one that placement knows. Nodes of later versions may have more."""
    return tier <= max(Tier)


def _tier(value: int) -> Tier:
    return bounds.member(value, Tier, "tier")


def _bytes(value: int) -> int:
    return bounds.count(value, "a number of bytes")


def _duration(value: Duration) -> float:
    return bounds.duration(value, "a duration")
