"""Between what operators say and see and the protocol's messages."""

import dataclasses

from google.protobuf import duration_pb2
from serverlessllm.v1 import cluster_service_pb2 as pb
from serverlessllm.v1 import types_pb2 as types_pb

from sllm import errors
from sllm.client.types import enums, operations
from sllm.client.wire import events, listings, requests
from sllm.client.wire.values import known_tier, moment, named, seconds


def tier_value(tier: str) -> types_pb.Tier.ValueType:
    """A tier by its name, in any case.

    Raises:
        errors.InvalidArgument: It names none.
    """
    name = f"TIER_{tier.upper()}"
    if name not in types_pb.Tier.DESCRIPTOR.values_by_name:
        raise errors.InvalidArgument(f"{tier!r} is no tier; checkpoints are kept on SSD or DRAM")
    return types_pb.Tier.Value(name)


def duration(value: float | None) -> duration_pb2.Duration | None:
    """A Duration, or none."""
    return None if value is None else requests.duration(value)


def request_receipt(message: pb.GetReceiptResponse) -> operations.RequestReceipt:
    """Where the time of a request went that has ended."""
    receipt = events.receipt(message.receipt)
    return operations.RequestReceipt(message.request_id, message.deployment, receipt)


def placement(message: pb.ExplainPlacementResponse) -> operations.Placement:
    """What placement would decide, and why."""
    return operations.Placement(
        action=named(enums.PlacementAction, pb.PlacementAction.DESCRIPTOR, message.action),
        node_id=message.node_id,
        instance_id=message.instance_id,
        estimate=seconds(message.estimate) if message.HasField("estimate") else None,
        why=message.why,
        candidates=tuple(map(_candidate, message.candidates)),
        engine=message.engine,
        learned=listings.learned(message.learned) if message.HasField("learned") else None,
        tuned=listings.tuned(message.tuned) if message.HasField("tuned") else None,
    )


def _candidate(one: pb.PlacementCandidate) -> operations.PlacementCandidate:
    return operations.PlacementCandidate(
        node_id=one.node_id,
        from_tier=known_tier(one.from_tier),
        estimate=seconds(one.estimate) if one.HasField("estimate") else None,
        parts=_parts(one.parts) if one.HasField("parts") else None,
        victims=tuple(one.victims),
        migrated=tuple(one.migrated),
        evicted_bytes=one.evicted_bytes,
        rejected=one.rejected,
        verdict=one.verdict,
        ready_made=one.ready_made if one.HasField("ready_made") else None,
    )


def _parts(parts: pb.StartEstimate) -> operations.StartEstimate:
    return operations.StartEstimate(
        making_room=seconds(parts.making_room),
        queue=seconds(parts.queue),
        transfer=seconds(parts.transfer),
        init=seconds(parts.init),
        distance=seconds(parts.distance),
        saved=seconds(parts.saved),
    )


def pin(message: pb.PinnedCheckpoint) -> operations.Pin:
    """A pin."""
    ends = message.HasField("expires_at")
    return operations.Pin(
        deployment=message.deployment,
        tier=known_tier(message.tier),
        node_id=message.node_id,
        pinned_until=moment(message.expires_at) if ends else None,
    )


def listed_pin(message: pb.ListedPin) -> operations.Pin:
    """A pin, and whether its node holds the checkpoint."""
    return dataclasses.replace(pin(message.pin), held=message.held)


def prefetched(message: pb.PrefetchDone) -> operations.Prefetched:
    """What was brought up."""
    return operations.Prefetched(
        node_id=message.node_id,
        tier=known_tier(message.tier),
        digest=message.digest,
        pinned_until=moment(message.expires_at),
    )


def drain_progress(message: pb.DrainProgress) -> operations.DrainProgress:
    """What a node still runs."""
    return operations.DrainProgress(message.running_requests, message.instances)
