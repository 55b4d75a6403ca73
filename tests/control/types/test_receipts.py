"""Receipts add up: what is told lies between the request's coming and its first token."""

from dataclasses import replace

import pytest

from sllm.control.cluster.tiers import Tier
from sllm.control.types.receipts import Phase, PhaseKind, StartRecord, Timing, assemble

START = StartRecord(
    decided_at=101.0,
    called_at=102.0,
    ready_at=107.0,
    phases=(Phase(PhaseKind.READ_SSD, 0.5, 4.0, 77), Phase(PhaseKind.WORKER_START, 0.0, 1.0)),
    from_tier=Tier.SSD,
    estimate=6.0,
)
SERVED = (Phase(PhaseKind.PREFILL, 0.0, 1.0),)


def _spans(phases: tuple[Phase, ...]) -> dict[str, tuple[float, float]]:
    return {one.kind.name: (one.start, one.duration) for one in phases}


def test_a_cold_request() -> None:
    timing = Timing(taken_at=100.0, picked_at=107.0, dispatched_at=107.0, first_token_at=108.0)
    receipt = assemble(timing, START, SERVED, node_id="n", instance_id="i")
    assert receipt.cold
    assert receipt.from_tier is Tier.SSD
    assert receipt.estimated_start == 6.0
    assert receipt.actual_start == 6.0
    assert receipt.time_to_first_token == 8.0
    assert _spans(receipt.phases) == {
        "QUEUED": (0.0, 1.0),
        "PLACED": (1.0, 1.0),
        "WORKER_START": (2.0, 1.0),
        "READ_SSD": (2.5, 4.0),
        "PREFILL": (7.0, 1.0),
    }
    assert [one.start for one in receipt.phases] == sorted(one.start for one in receipt.phases)


def test_a_request_that_joins_a_start_counts_from_its_own_coming() -> None:
    timing = Timing(taken_at=104.0, picked_at=107.0, dispatched_at=107.0, first_token_at=108.0)
    receipt = assemble(timing, START, SERVED, node_id="n", instance_id="i")
    assert receipt.cold
    assert _spans(receipt.phases) == {
        "QUEUED": (0.0, 0.0),
        "PLACED": (0.0, 0.0),
        "READ_SSD": (0.0, 2.5),
        "PREFILL": (3.0, 1.0),
    }


@pytest.mark.parametrize(
    ("held", "fetched", "imported", "origin"),
    [
        (Tier.REMOTE, 60, 40, Tier.PEER),
        (Tier.REMOTE, 40, 60, Tier.REMOTE),
        (Tier.REMOTE, 0, 0, Tier.REMOTE),
        (Tier.SSD, 0, 0, Tier.SSD),
    ],
)
def test_weights_come_from_where_most_of_them_do(
    held: Tier, fetched: int, imported: int, origin: Tier
) -> None:
    parts = ((PhaseKind.FETCH_PEERS, fetched), (PhaseKind.IMPORT, imported))
    phases = tuple(Phase(kind, 0.0, 1.0, size) for kind, size in parts if size)
    timing = Timing(taken_at=100.0, picked_at=107.0, dispatched_at=107.0, first_token_at=108.0)
    start = replace(START, phases=phases, from_tier=held)
    assert assemble(timing, start, SERVED, node_id="n", instance_id="i").from_tier is origin


@pytest.mark.parametrize("start", [None, START])
def test_a_warm_request(start: StartRecord | None) -> None:
    timing = Timing(taken_at=200.0, picked_at=201.0, dispatched_at=201.5, first_token_at=203.0)
    receipt = assemble(timing, start, SERVED, node_id="n", instance_id="i")
    assert not receipt.cold
    assert receipt.from_tier is None
    assert receipt.estimated_start is None
    assert _spans(receipt.phases) == {
        "QUEUED": (0.0, 1.0),
        "PLACED": (1.0, 0.5),
        "PREFILL": (1.5, 1.0),
    }
