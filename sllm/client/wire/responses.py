"""From the protocol's responses to what callers see."""

from collections.abc import Iterable
from typing import TypeVar

from google.protobuf import descriptor, duration_pb2, timestamp_pb2
from serverlessllm.v1 import deployment_service_pb2 as deployment_pb
from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1 import types_pb2 as pb

from sllm.client.types import enums, events, records

E = TypeVar(
    "E",
    enums.Tier,
    enums.DeploymentState,
    enums.InstanceState,
    enums.FinishReason,
    enums.MigrationReason,
    enums.LoadPhase,
    enums.PhaseKind,
    enums.PlacementAction,
)


def event(message: inference_pb.GenerateResponse) -> events.Event | None:
    """The event of a message. None: it is of a kind that this version does not know."""
    match message.WhichOneof("event"):
        case "tokens":
            return _tokens(message.sequence, message.tokens)
        case "queued":
            return _queued(message.sequence, message.queued)
        case "loading":
            return _loading(message.sequence, message.loading)
        case "started":
            return _started(message.sequence, message.started)
        case "migrated":
            return _migrated(message.sequence, message.migrated)
        case "finished":
            return _finished(message.sequence, message.finished)
        case _:
            return None


def _queued(sequence: int, queued: inference_pb.Queued) -> events.Queued:
    wait = seconds(queued.estimated_wait) if queued.HasField("estimated_wait") else None
    return events.Queued(sequence, queued.position, wait)


def _loading(sequence: int, loading: pb.Loading) -> events.Loading:
    found = progress(loading)
    return events.Loading(
        sequence=sequence,
        phase=found.phase,
        from_tier=found.from_tier,
        loaded_bytes=found.loaded_bytes,
        total_bytes=found.total_bytes,
        estimated_remaining=found.estimated_remaining,
    )


def _started(sequence: int, started: inference_pb.Started) -> events.Started:
    return events.Started(
        sequence=sequence,
        instance_id=started.instance_id,
        node_id=started.node_id,
        prompt_tokens=started.prompt_tokens,
        request_id=started.request_id,
    )


def _tokens(sequence: int, tokens: inference_pb.Tokens) -> events.Tokens:
    return events.Tokens(
        sequence=sequence,
        first_index=tokens.first_index,
        token_ids=tuple(tokens.token_ids),
        text=tokens.text,
        logprobs=tuple(map(_token_logprob, tokens.logprobs)),
    )


def _token_logprob(logprob: pb.TokenLogprob) -> events.TokenLogprob:
    top = tuple(events.TopLogprob(one.token_id, one.logprob) for one in logprob.top)
    return events.TokenLogprob(logprob.logprob, top)


def _migrated(sequence: int, migrated: inference_pb.Migrated) -> events.Migrated:
    return events.Migrated(
        sequence=sequence,
        from_node_id=migrated.from_node_id,
        to_node_id=migrated.to_node_id,
        to_instance_id=migrated.to_instance_id,
        pause=seconds(migrated.pause),
        reason=named(
            enums.MigrationReason, inference_pb.MigrationReason.DESCRIPTOR, migrated.reason
        ),
    )


def _finished(sequence: int, finished: inference_pb.Finished) -> events.Finished:
    usage = finished.usage
    return events.Finished(
        sequence=sequence,
        reason=named(enums.FinishReason, pb.FinishReason.DESCRIPTOR, finished.reason),
        usage=events.Usage(
            usage.prompt_tokens, usage.completion_tokens, usage.cached_prompt_tokens
        ),
        receipt=_receipt(finished.receipt),
        stop=finished.stop if finished.HasField("stop") else None,
    )


def _receipt(receipt: pb.Receipt) -> events.Receipt:
    estimated = receipt.HasField("estimated_start")
    return events.Receipt(
        cold=receipt.cold,
        from_tier=_tier(receipt.from_tier),
        phases=tuple(map(_phase, receipt.phases)),
        time_to_first_token=seconds(receipt.time_to_first_token),
        estimated_start=seconds(receipt.estimated_start) if estimated else None,
        actual_start=seconds(receipt.actual_start) if receipt.HasField("actual_start") else None,
        node_id=receipt.node_id,
        instance_id=receipt.instance_id,
    )


def _phase(phase: pb.Phase) -> events.Phase:
    return events.Phase(
        kind=named(enums.PhaseKind, pb.PhaseKind.DESCRIPTOR, phase.kind),
        start=seconds(phase.start),
        duration=seconds(phase.duration),
        size_bytes=phase.size_bytes if phase.HasField("size_bytes") else None,
    )


def progress(loading: pb.Loading) -> events.Progress:
    """How far a load is."""
    estimated = loading.HasField("estimated_remaining")
    return events.Progress(
        phase=named(enums.LoadPhase, pb.LoadPhase.DESCRIPTOR, loading.phase),
        from_tier=_tier(loading.from_tier),
        loaded_bytes=loading.loaded_bytes,
        total_bytes=loading.total_bytes,
        estimated_remaining=seconds(loading.estimated_remaining) if estimated else None,
    )


def deployment(message: deployment_pb.Deployment) -> records.Deployment:
    """A deployment as it is."""
    engine, scaling = message.engine, message.scaling
    return records.Deployment(
        name=message.name,
        source=message.source,
        state=named(enums.DeploymentState, deployment_pb.DeploymentState.DESCRIPTOR, message.state),
        message=message.message,
        engine=engine.engine,
        dtype=engine.dtype,
        kv_cache_tokens=engine.kv_cache_tokens if engine.HasField("kv_cache_tokens") else None,
        max_concurrency=engine.max_concurrency if engine.HasField("max_concurrency") else None,
        pack=engine.pack,
        min_replicas=scaling.min_replicas,
        max_replicas=scaling.max_replicas,
        keep_alive=seconds(scaling.keep_alive),
        target_concurrency=(
            scaling.target_concurrency if scaling.HasField("target_concurrency") else None
        ),
        model=_model(message.model),
        created_at=moment(message.created_at),
        ready_instances=message.ready_instances,
        queued_requests=message.queued_requests,
        loading=progress(message.loading) if message.HasField("loading") else None,
    )


def _model(model: pb.ModelInfo) -> records.Model:
    return records.Model(
        architecture=model.architecture,
        size_bytes=model.size_bytes,
        context_tokens=model.context_tokens,
        kv_bytes_per_token=model.kv_bytes_per_token,
        digest=model.digest,
    )


def instance(message: pb.Instance) -> records.Instance:
    """An instance as it is."""
    return records.Instance(
        instance_id=message.instance_id,
        deployment=message.deployment,
        node_id=message.node_id,
        state=named(enums.InstanceState, pb.InstanceState.DESCRIPTOR, message.state),
        running_requests=message.running_requests,
        kv_bytes=message.kv_bytes,
        digest=message.digest,
        started_at=moment(message.started_at),
        worker_pid=message.worker_pid,
    )


def node(message: pb.Node) -> records.Node:
    """A node as it was last reported."""
    return records.Node(
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
    )


def _device(device: pb.Device) -> records.Device:
    return records.Device(
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


def _tier_usage(usage: pb.TierUsage) -> records.TierUsage:
    return records.TierUsage(
        known_tier(usage.tier), usage.capacity_bytes, usage.used_bytes, usage.problem
    )


def _copy(copy: pb.CheckpointCopy) -> records.CheckpointCopy:
    return records.CheckpointCopy(
        digest=copy.digest,
        tier=known_tier(copy.tier),
        size_bytes=copy.size_bytes,
        resident_bytes=copy.resident_bytes,
        sources=tuple(copy.sources),
        leased=copy.leased,
        pinned=bool(copy.holds),
        pinned_until=_pinned_until(copy.holds),
    )


def _pinned_until(holds: Iterable[pb.Hold]) -> float | None:
    """When the last of them ends. None: there is none, or one of them does not end."""
    ends = [moment(hold.expires_at) if hold.HasField("expires_at") else None for hold in holds]
    known = [end for end in ends if end is not None]
    return max(known) if known and len(known) == len(ends) else None


def _link(link: pb.LinkObservation) -> records.Link:
    return records.Link(
        from_tier=known_tier(link.from_tier),
        to_tier=known_tier(link.to_tier),
        bytes_per_second=link.bytes_per_second,
        queued_bytes=link.queued_bytes,
        in_flight_bytes=link.in_flight_bytes,
    )


def _tier(value: int) -> enums.Tier | None:
    return None if value == pb.TIER_UNSPECIFIED else known_tier(value)


def known_tier(value: int) -> enums.Tier:
    """A tier that is named."""
    return named(enums.Tier, pb.Tier.DESCRIPTOR, value)


def named(cls: type[E], enum: descriptor.EnumDescriptor, value: int) -> E:
    """The member of `cls` with the value's name, less the prefix that all names of it share."""
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    known = enum.values_by_number.get(value)
    name = known.name.removeprefix(prefix) if known else ""
    return cls[name] if name in cls.__members__ else cls.UNKNOWN


def seconds(duration: duration_pb2.Duration) -> float:
    """Seconds of a Duration."""
    return duration.ToNanoseconds() / 1e9


def moment(timestamp: timestamp_pb2.Timestamp) -> float:
    """Seconds since the epoch."""
    return timestamp.ToNanoseconds() / 1e9
