"""What listings tell, as the records that callers see."""

from collections.abc import Iterable

from serverlessllm.v1 import deployment_service_pb2 as deployment_pb
from serverlessllm.v1 import types_pb2 as pb

from sllm.client.types import deployments, enums, nodes
from sllm.client.wire.events import progress
from sllm.client.wire.values import known_tier, moment, named, seconds
from sllm.embedding.wire import purpose


def deployment(message: deployment_pb.Deployment) -> deployments.Deployment:
    """A deployment as it is."""
    engine, scaling = message.engine, message.scaling
    return deployments.Deployment(
        name=message.name,
        source=message.source,
        state=named(enums.DeploymentState, deployment_pb.DeploymentState.DESCRIPTOR, message.state),
        message=message.message,
        engine=engine.engine,
        dtype=engine.dtype,
        kv_cache_tokens=engine.kv_cache_tokens if engine.HasField("kv_cache_tokens") else None,
        max_concurrency=engine.max_concurrency if engine.HasField("max_concurrency") else None,
        pack=engine.pack,
        tool_parser=engine.tool_parser,
        reasoning_parser=engine.reasoning_parser,
        tensor_parallel=engine.tensor_parallel or 1,
        min_replicas=scaling.min_replicas,
        max_replicas=scaling.max_replicas,
        keep_alive=seconds(scaling.keep_alive),
        target_concurrency=(
            scaling.target_concurrency if scaling.HasField("target_concurrency") else None
        ),
        model=model(message.model),
        created_at=moment(message.created_at),
        ready_instances=message.ready_instances,
        queued_requests=message.queued_requests,
        loading=progress(message.loading) if message.HasField("loading") else None,
        max_adapters=engine.max_adapters,
        max_adapter_rank=engine.max_adapter_rank if engine.HasField("max_adapter_rank") else None,
        expert_memory=engine.expert_memory_bytes
        if engine.HasField("expert_memory_bytes")
        else None,
        base=message.base,
        image_hosts=tuple(message.image_hosts),
        learn_keep_alive=(
            scaling.learn_keep_alive if scaling.HasField("learn_keep_alive") else None
        ),
        learned=learned(message.learned) if message.HasField("learned") else None,
        target_time_per_token=(
            seconds(scaling.target_time_per_token)
            if scaling.HasField("target_time_per_token")
            else None
        ),
        tuned=tuned(message.tuned) if message.HasField("tuned") else None,
    )


def tuned(message: pb.TunedConcurrency) -> deployments.TunedConcurrency:
    """What a target for the time between tokens has come to."""
    return deployments.TunedConcurrency(message.requests, seconds(message.time_per_token))


def learned(message: pb.LearnedKeepTimes) -> deployments.LearnedKeepTimes:
    """For how long instances and their weights stay."""
    return deployments.LearnedKeepTimes(seconds(message.instance), seconds(message.weights))


def model(model: pb.ModelInfo) -> deployments.Model:
    """What a model needs from a node."""
    return deployments.Model(
        architecture=model.architecture,
        size_bytes=model.size_bytes,
        context_tokens=model.context_tokens,
        kv_bytes_per_token=model.kv_bytes_per_token,
        digest=model.digest,
        purpose=purpose(model.purpose),
        adapter=_adapter(model.adapter) if model.HasField("adapter") else None,
        experts=_experts(model.experts) if model.HasField("experts") else None,
    )


def _experts(experts: pb.MixtureOfExperts) -> deployments.Experts:
    return deployments.Experts(experts.size_bytes, experts.memory_bytes, experts.least_memory_bytes)


def _adapter(info: pb.AdapterInfo) -> deployments.Adapter:
    return deployments.Adapter(info.rank, tuple(info.target_modules))


def instance(message: pb.Instance) -> deployments.Instance:
    """An instance as it is."""
    return deployments.Instance(
        instance_id=message.instance_id,
        deployment=message.deployment,
        node_id=message.node_id,
        state=named(enums.InstanceState, pb.InstanceState.DESCRIPTOR, message.state),
        running_requests=message.running_requests,
        kv_bytes=message.kv_bytes,
        digest=message.digest,
        started_at=moment(message.started_at),
        worker_pid=message.worker_pid,
        orphan_until=moment(message.orphan_until) if message.HasField("orphan_until") else None,
        own_bytes=message.own_bytes,
        engine=message.engine,
        adapters=tuple(one.deployment for one in message.adapters),
        kv_share=_kv_share(message.kv_share) if message.HasField("kv_share") else None,
    )


def _kv_share(share: pb.KvShare) -> deployments.KvShare:
    return deployments.KvShare(share.size_bytes, share.used_bytes)


def node(message: pb.Node) -> nodes.Node:
    """A node as it was last reported."""
    return nodes.Node(
        node_id=message.node_id,
        address=message.address,
        host=message.host,
        tiers=tuple(map(_tier_usage, message.tiers)),
        kv_capacity_bytes=message.kv_capacity_bytes,
        kv_used_bytes=message.kv_used_bytes,
        copies=tuple(map(_copy, message.copies)),
        links=tuple(map(_link, message.links)),
        init_time=seconds(message.init_time) if message.HasField("init_time") else None,
        connected_at=moment(message.connected_at),
        draining=message.draining,
        devices=tuple(map(_device, message.devices)),
        memory=_memory(message.memory) if message.HasField("memory") else None,
        engines=tuple(nodes.Engine(one.name, one.ready) for one in message.engines),
        max_tensor_parallel=message.max_tensor_parallel or 1,
        zone=message.zone,
        unmade_forms=tuple(
            nodes.UnmadeForm(one.digest, one.made_for, one.problem) for one in message.unmade_forms
        ),
    )


def _memory(memory: pb.NodeMemory) -> nodes.NodeMemory:
    return nodes.NodeMemory(
        memory.total_bytes,
        memory.capacity_bytes,
        memory.used_bytes,
        memory.instance_bytes,
        memory.max_instances,
    )


def _device(device: pb.Device) -> nodes.Device:
    return nodes.Device(
        device.index,
        device.name,
        device.uuid,
        device.total_bytes,
        device.free_bytes,
        device.weights_capacity_bytes,
        device.weights_used_bytes,
        device.kv_capacity_bytes,
        device.kv_used_bytes,
        device.reserved_bytes,
        device.idle_bytes,
    )


def _tier_usage(usage: pb.TierUsage) -> nodes.TierUsage:
    return nodes.TierUsage(
        known_tier(usage.tier), usage.capacity_bytes, usage.used_bytes, usage.problem
    )


def _copy(copy: pb.CheckpointCopy) -> nodes.CheckpointCopy:
    return nodes.CheckpointCopy(
        digest=copy.digest,
        tier=known_tier(copy.tier),
        size_bytes=copy.size_bytes,
        resident_bytes=copy.resident_bytes,
        sources=tuple(copy.sources),
        leased=copy.leased,
        pinned=bool(copy.holds),
        pinned_until=_pinned_until(copy.holds),
        made_of=copy.made_of,
        made_for=copy.made_for,
        form=_form(copy.form) if copy.HasField("form") else None,
    )


def _form(form: pb.WeightForm) -> nodes.WeightForm:
    return nodes.WeightForm(
        name=form.name,
        engine=form.engine,
        ranks=form.ranks,
        versions=dict(form.versions),
        kernels=form.kernels,
        dtype=form.dtype,
    )


def _pinned_until(holds: Iterable[pb.Hold]) -> float | None:
    """When the last of them ends. None: there is none, or one of them does not end."""
    ends = [moment(hold.expires_at) if hold.HasField("expires_at") else None for hold in holds]
    known = [end for end in ends if end is not None]
    return max(known) if known and len(known) == len(ends) else None


def _link(link: pb.LinkObservation) -> nodes.Link:
    return nodes.Link(
        from_tier=known_tier(link.from_tier),
        to_tier=known_tier(link.to_tier),
        bytes_per_second=link.bytes_per_second,
        queued_bytes=link.queued_bytes,
        in_flight_bytes=link.in_flight_bytes,
    )
