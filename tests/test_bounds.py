"""What is let in can be written out again."""

import math
from enum import IntEnum

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from sllm import bounds, errors

int64 = st.integers(-(2**63), 2**63 - 1)
int32 = st.integers(-(2**31), 2**31 - 1)


@given(int64, int32)
def test_a_duration_is_refused_or_can_be_written_again(seconds: int, nanos: int) -> None:
    value = Duration(seconds=seconds, nanos=nanos)
    try:
        let_in = bounds.duration(value, "ttl")
    except errors.InvalidArgument:
        assert not 0 <= seconds + nanos / 1e9 <= bounds.LONGEST
    else:
        Duration().FromNanoseconds(round(let_in * 1e9))


@given(int64, int32)
def test_a_moment_is_refused_or_can_be_written_again(seconds: int, nanos: int) -> None:
    try:
        let_in = bounds.moment(Timestamp(seconds=seconds, nanos=nanos), "started_at")
    except errors.InvalidArgument:
        assert not 0 <= seconds + nanos / 1e9 <= bounds.LATEST
    else:
        Timestamp().FromNanoseconds(round(let_in * 1e9))


def test_ordinary_durations_are_let_in() -> None:
    assert bounds.duration(Duration(seconds=60, nanos=500_000_000), "ttl") == 60.5
    assert bounds.duration(Duration(), "ttl") == 0
    assert bounds.positive_duration(Duration(nanos=1), "ttl") == 1e-9
    with pytest.raises(errors.InvalidArgument, match="above 0"):
        bounds.positive_duration(Duration(), "ttl")
    with pytest.raises(errors.InvalidArgument, match="to 3600"):
        bounds.duration(Duration(seconds=3601), "linger", most=3600.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0])
def test_a_rate_is_a_number(value: float) -> None:
    assert bounds.rate(1e9, "speed") == 1e9
    with pytest.raises(errors.InvalidArgument, match="speed"):
        bounds.rate(value, "speed")


def test_a_count_has_bounds() -> None:
    assert bounds.count(0, "bytes") == 0
    for value in (-1, 2**63 - 1):
        with pytest.raises(errors.InvalidArgument, match="bytes must be from 0"):
            bounds.count(value, "bytes")


class _Color(IntEnum):
    RED = 1


class _Flavour(IntEnum):
    UP = 1
    DOWN = 2
    STRANGE = 3


def test_only_some_members_may_be_meant() -> None:
    some = (_Flavour.UP, _Flavour.DOWN)
    assert bounds.one_of(2, some, "flavour") is _Flavour.DOWN
    for value in (0, 3, 4):
        told = rf"flavour must be UP \(1\) or DOWN \(2\), not {value}"
        with pytest.raises(errors.InvalidArgument, match=told):
            bounds.one_of(value, some, "flavour")


def test_a_member_is_one_of_those_that_are_known() -> None:
    assert bounds.member(1, _Color, "color") is _Color.RED
    for value in (0, 99, -1):
        with pytest.raises(errors.InvalidArgument, match=r"known: RED \(1\)"):
            bounds.member(value, _Color, "color")


@pytest.mark.parametrize("value", ["", "host", ":1", "a b:1", "h:70000", "http://a:1", "\0:1"])
def test_an_address_has_a_host_and_a_port(value: str) -> None:
    assert bounds.address("[::1]:50051", "address") == "[::1]:50051"
    with pytest.raises(errors.InvalidArgument, match="host:port"):
        bounds.address(value, "address")
