"""What a tenant may take at once."""

from dataclasses import replace

import pytest

from sllm import errors
from sllm.control.tenants.limits import (
    Limits,
    Load,
    check_bytes,
    check_calls,
    check_pinned,
    check_replicas,
    check_requests,
)

MIB = 1 << 20
IDLE = Load(requests=0, queued=0, token_wait=0.0)
ONE_OF_EACH = Limits(requests=1, queued=1, tokens_per_minute=60, replicas=1, pinned_bytes=1)
NO_REQUESTS_BOUND = replace(ONE_OF_EACH, requests=None)


def test_without_bounds_everything_is_taken() -> None:
    check_requests("a", Limits(), Load(10**6, 10**6, 0.0), 10**6, 10**6)
    check_replicas("a", Limits(), {"m": 10**6})
    check_pinned("a", Limits(), 10**15)


def test_what_is_within_its_bounds_is_taken() -> None:
    check_requests("a", ONE_OF_EACH, IDLE, 1, 1)
    check_replicas("a", ONE_OF_EACH, {"m": 1, "n": 0})
    check_pinned("a", ONE_OF_EACH, 1)


@pytest.mark.parametrize(
    ("load", "more", "limit", "retry_after"),
    [
        (replace(IDLE, requests=1), 1, "requests", 1.0),
        (IDLE, 2, "requests", 1.0),
        (replace(IDLE, token_wait=7.5), 1, "tokens_per_minute", 7.5),
    ],
)
def test_requests_beyond_a_bound_are_refused(
    load: Load, more: int, limit: str, retry_after: float
) -> None:
    with pytest.raises(errors.TenantLimit, match="tenant a") as caught:
        check_requests("a", ONE_OF_EACH, load, more, to_wait=0)
    assert caught.value.metadata == {"tenant": "a", "limit": limit}
    assert caught.value.retry_after == retry_after


def test_a_queue_has_a_bound_of_its_own() -> None:
    with pytest.raises(errors.TenantLimit, match="1 requests that wait, and this would make 2"):
        check_requests("a", NO_REQUESTS_BOUND, replace(IDLE, queued=1), more=1, to_wait=1)
    check_requests("a", NO_REQUESTS_BOUND, replace(IDLE, queued=1), more=1, to_wait=0)


def test_more_kept_instances_than_it_may_have_are_refused() -> None:
    with pytest.raises(
        errors.TenantLimit, match=r"may have 1 instances, .* would keep 2: lower it"
    ):
        check_replicas("a", ONE_OF_EACH, {"m": 1, "n": 1})


@pytest.mark.parametrize(
    ("size", "told"),
    [
        (3 * MIB, "2.0 MiB of checkpoints on SSD, and this would make 3.0 MiB, 1.0 MiB too much"),
        (2 * MIB + 0.5, "2.0 MiB of checkpoints on SSD, and this would make 2.0 MiB, 1 B too much"),
    ],
)
def test_more_bytes_of_a_tier_than_it_may_have_are_refused_with_what_frees_some(
    size: float, told: str
) -> None:
    limits = Limits(ssd_bytes=2 * MIB)
    check_bytes("a", limits, "SSD", 2 * MIB)
    check_bytes("a", limits, "DRAM", 1e15)
    with pytest.raises(errors.TenantLimit, match=f"{told}: delete deployments, or unpin") as caught:
        check_bytes("a", limits, "SSD", size)
    assert caught.value.metadata == {"tenant": "a", "limit": "ssd_bytes"}
    assert caught.value.retry_after is None, "no other try helps"


def test_more_pinned_bytes_than_it_may_have_are_refused_with_what_frees_some() -> None:
    limits = Limits(pinned_bytes=MIB)
    with pytest.raises(errors.TenantLimit, match=r"may have 1\.0 MiB pinned, .*: unpin") as caught:
        check_pinned("a", limits, 2 * MIB)
    assert caught.value.metadata == {"tenant": "a", "limit": "pinned_bytes"}


def test_who_calls_too_often_is_told_when_to_call_again() -> None:
    limits = Limits(calls_per_second=2.0)
    check_calls("a", limits, 0.0)
    with pytest.raises(errors.TenantLimit, match="2 calls a second") as caught:
        check_calls("a", limits, 0.5)
    assert caught.value.metadata == {"tenant": "a", "limit": "calls_per_second"}
    assert caught.value.retry_after == 0.5


@pytest.mark.parametrize(
    "limits",
    [
        *(replace(Limits(), **{name: -1}) for name in ("requests", "queued", "replicas")),
        *(Limits(calls_per_second=rate) for rate in (-1.0, float("nan"), float("inf"))),
        *(replace(Limits(), **{f"{tier}_bytes": -1}) for tier in ("ssd", "dram", "device")),
        *(Limits(weight=weight) for weight in (0.0, -1.0, float("nan"), float("inf"), 1001.0)),
    ],
)
def test_bounds_that_make_no_sense_are_refused(limits: Limits) -> None:
    with pytest.raises(errors.InvalidArgument, match="must be"):
        limits.validate()
