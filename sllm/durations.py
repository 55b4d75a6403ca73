"""Seconds and the protocol's Durations. Every part uses it, the worker included."""

from google.protobuf.duration_pb2 import Duration


def to_duration(seconds: float) -> Duration:
    """A Duration of `seconds`, to the nanosecond."""
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration


def to_seconds(duration: Duration) -> float:
    """The seconds of a Duration; one that is not set has none."""
    return duration.ToNanoseconds() / 1e9
