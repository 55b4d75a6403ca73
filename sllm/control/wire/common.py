"""What all translations share: times, tiers, loads, and the ids of calls."""

import copy
import hashlib
from typing import TypeAlias

from google.protobuf import duration_pb2, timestamp_pb2
from serverlessllm.v1 import cluster_service_pb2 as cluster_pb
from serverlessllm.v1 import deployment_service_pb2 as deployment_pb
from serverlessllm.v1 import key_service_pb2 as key_pb
from serverlessllm.v1 import tenant_service_pb2 as tenant_pb
from serverlessllm.v1 import types_pb2 as pb

from sllm import bounds
from sllm.control.cluster.tiers import Tier
from sllm.control.types.calls import Answer, AnswerFormat, Call
from sllm.control.types.status import Learned, Loading, LoadPhase, Tuned

Mutating: TypeAlias = (
    deployment_pb.DeployRequest
    | deployment_pb.DeleteDeploymentRequest
    | cluster_pb.PrefetchRequest
    | cluster_pb.PinRequest
    | cluster_pb.UnpinRequest
    | cluster_pb.DrainNodeRequest
    | cluster_pb.UndrainNodeRequest
    | tenant_pb.SetTenantRequest
    | key_pb.CreateKeyRequest
    | key_pb.RevokeKeyRequest
)
"""Calls that change something, and that their callers may name."""


def duration(seconds: float) -> duration_pb2.Duration:
    """A Duration of `seconds`."""
    result = duration_pb2.Duration()
    result.FromNanoseconds(_nanoseconds(seconds))
    return result


def seconds(value: duration_pb2.Duration | timestamp_pb2.Timestamp) -> float:
    """Seconds of a Duration, or since the epoch of a Timestamp."""
    return value.seconds + value.nanos / 1e9


def optional_duration(seconds: float | None) -> duration_pb2.Duration | None:
    """A Duration, or none."""
    return None if seconds is None else duration(seconds)


def learned_message(learned: Learned | None) -> pb.LearnedKeepTimes | None:
    """For how long instances and their weights stay, or none."""
    if learned is None:
        return None
    return pb.LearnedKeepTimes(
        instance=duration(learned.keep_alive), weights=duration(learned.keep_weights)
    )


def tuned_message(tuned: Tuned | None) -> pb.TunedConcurrency | None:
    """What a target for the time between tokens has come to, or none."""
    if tuned is None:
        return None
    return pb.TunedConcurrency(
        requests=tuned.requests, time_per_token=duration(tuned.time_per_token)
    )


def timestamp(epoch_seconds: float) -> timestamp_pb2.Timestamp:
    """A Timestamp of `epoch_seconds`."""
    result = timestamp_pb2.Timestamp()
    result.FromNanoseconds(_nanoseconds(epoch_seconds))
    return result


def optional_timestamp(epoch_seconds: float | None) -> timestamp_pb2.Timestamp | None:
    """A Timestamp, or none."""
    return None if epoch_seconds is None else timestamp(epoch_seconds)


def _nanoseconds(seconds: float) -> int:
    # `seconds * 1e9` cannot hold a moment of today in nanoseconds: what is read from it would
    # be another moment, and a repeated call would be told so.
    whole, rest = divmod(seconds, 1.0)
    return int(whole) * 10**9 + round(rest * 1e9)


def tier(value: pb.Tier.ValueType) -> Tier | None:
    """A tier, if one is named that is known here: nodes of later versions may have more."""
    return next((one for one in Tier if one.value == value), None)


def loading(progress: pb.Loading) -> Loading:
    """How far a node says that a load is."""
    remaining = progress.estimated_remaining
    return Loading(
        phase=LoadPhase(progress.phase),
        from_tier=tier(progress.from_tier),
        loaded_bytes=progress.loaded_bytes,
        total_bytes=progress.total_bytes,
        remaining=seconds(remaining) if progress.HasField("estimated_remaining") else None,
    )


def loading_message(progress: Loading) -> pb.Loading:
    """How far a load is, for callers."""
    return pb.Loading(
        phase=pb.LoadPhase.ValueType(progress.phase),
        from_tier=pb.Tier.ValueType(progress.from_tier or 0),
        loaded_bytes=progress.loaded_bytes,
        total_bytes=progress.total_bytes,
        estimated_remaining=optional_duration(progress.remaining),
    )


def call(request: Mutating, answers: AnswerFormat[Answer]) -> Call[Answer]:
    """The id of a mutating call, a digest of all the rest, and how its answer is kept.

    Raises:
        errors.InvalidArgument: The id is too long.
    """
    content = copy.copy(request)
    content.ClearField("request_id")
    name = content.DESCRIPTOR.full_name.encode()
    digest = hashlib.sha256(name + b"\0" + content.SerializeToString(deterministic=True))
    return Call(bounds.name(request.request_id, "request_id"), digest.hexdigest(), answers)
