"""From the protocol's enums, durations and timestamps to those of callers."""

from typing import TypeVar

from google.protobuf import descriptor, duration_pb2, timestamp_pb2
from serverlessllm.v1 import types_pb2 as pb

from sllm.client.types import enums

E = TypeVar(
    "E",
    enums.Tier,
    enums.MoveWay,
    enums.BatchState,
    enums.CallerRole,
    enums.DeploymentState,
    enums.InstanceState,
    enums.FinishReason,
    enums.MigrationReason,
    enums.LoadPhase,
    enums.PhaseKind,
    enums.PlacementAction,
)


def tier(value: int) -> enums.Tier | None:
    """A tier, or none where none is named."""
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
