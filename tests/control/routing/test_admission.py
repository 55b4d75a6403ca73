"""Requests that are refused at once, and what they are told."""

from dataclasses import replace
from pathlib import Path

import pytest

from sllm import errors
from sllm.control.config import ControlConfig
from sllm.control.routing.admission import WaitEstimate, check_deadline, check_queue

CONFIG = ControlConfig(Path("/nowhere"), max_queued=10, max_queued_per_deployment=4)
CALM = WaitEstimate("m", ahead=0, waiting=0, waiting_in_all=0, to_wait=1, wait=5.0, first_token=1.0)


def test_a_queue_with_room_takes_a_request() -> None:
    check_queue(replace(CALM, waiting=3, waiting_in_all=9), CONFIG)


@pytest.mark.parametrize(
    ("estimate", "match"),
    [
        (replace(CALM, waiting=4, waiting_in_all=4), "4 requests wait for m"),
        (replace(CALM, waiting=0, waiting_in_all=10), "10 requests wait in all"),
    ],
)
def test_a_full_queue_refuses_and_says_when_to_come_back(
    estimate: WaitEstimate, match: str
) -> None:
    with pytest.raises(errors.QueueFull, match=match) as caught:
        check_queue(estimate, CONFIG)
    assert caught.value.retry_after == 5.0


def test_who_need_not_wait_is_taken_whoever_else_waits() -> None:
    check_queue(replace(CALM, waiting_in_all=10, to_wait=0, wait=0.0), CONFIG)


def test_who_would_come_too_late_is_told_the_estimate() -> None:
    check_deadline(CALM, 6.5)
    with pytest.raises(errors.DeadlineExceeded, match=r"about 6\.0 s.*in 5\.5 s") as caught:
        check_deadline(CALM, 5.5)
    assert caught.value.metadata["estimated_wait_seconds"] == "5.000"
    assert caught.value.metadata["estimated_first_token_seconds"] == "6.000"


def test_what_nobody_knows_is_tried() -> None:
    check_deadline(replace(CALM, wait=None), 0.1)
    check_deadline(CALM, None)
