"""Nodes and instances, as the protocol's messages."""

from serverlessllm.v1 import types_pb2 as pb

from sllm.checkpoint.format.form import WeightForm
from sllm.control.cluster.init_times import InitKey, InitTime
from sllm.control.cluster.instances import Instance, KvShare
from sllm.control.cluster.nodes import Device, NodeMemory, NodeView
from sllm.control.cluster.tiers import Copy, Link, LinkKey
from sllm.control.wire import common, deployments


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
        zone=facts.zone,
        unmade_forms=[
            pb.UnmadeForm(digest=one.digest, made_for=one.made_for, problem=one.problem)
            for one in facts.unmade_forms
        ],
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
        form=_form_message(one.form) if one.form else None,
        private_bytes=one.private_bytes,
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
    return pb.InitObservation(
        digest=key.digest,
        engine=key.engine,
        ready_made=key.ready_made,
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
        ready_made=one.ready_made,
        kv_share=_kv_share_message(one.kv_share) if one.kv_share else None,
    )


def _kv_share_message(one: KvShare) -> pb.KvShare:
    return pb.KvShare(size_bytes=one.size_bytes, used_bytes=one.used_bytes)


def _memory_message(memory: NodeMemory) -> pb.NodeMemory:
    return pb.NodeMemory(
        total_bytes=memory.total_bytes,
        capacity_bytes=memory.capacity_bytes,
        used_bytes=memory.used_bytes,
        instance_bytes=memory.instance_bytes,
        max_instances=memory.max_instances,
    )


def _form_message(one: WeightForm) -> pb.WeightForm:
    return pb.WeightForm(
        name=one.name,
        engine=one.engine,
        ranks=one.ranks,
        versions=one.versions,
        kernels=one.kernels,
        dtype=one.dtype,
        made_of=one.made_of,
    )
