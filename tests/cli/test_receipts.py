"""A receipt as a waterfall."""

import json

from hypothesis import given
from hypothesis import strategies as st
from serverlessllm.v1 import cluster_service_pb2 as cluster_pb

from sllm.cli.receipts import waterfall
from sllm.client.types.enums import PhaseKind, Tier
from sllm.client.types.receipts import Phase, Receipt
from tests.cli.conftest import Run
from tests.cli.screen import lines
from tests.client.fake_control import FakeControl
from tests.client.messages import finished

SECONDS = st.integers(0, 10**14).map(lambda nanoseconds: nanoseconds / 1e9)  # as they come


def _receipt(phases: tuple[Phase, ...], first: float) -> Receipt:
    return Receipt(True, Tier.SSD, phases, first, 1.5, "n-1", "i-1", 1.25, "vllm")


def test_bars_stand_where_the_phases_were() -> None:
    phases = (
        Phase(PhaseKind.QUEUED, 0.0, 0.5, None),
        Phase(PhaseKind.READ_SSD, 0.5, 0.25, 1 << 30),
        Phase(PhaseKind.PREFILL, 0.75, 0.25, None),
    )
    shown = lines(waterfall(_receipt(phases, 1.0)), 80)
    assert shown[0] == "1000.0 ms to the first token, cold, SSD, vllm on n-1"
    assert shown[1] == "the start was expected to take 1500.0 ms and took 1250.0"
    bars = [(line.index("━"), line.count("━")) for line in shown if "━" in line]
    origin = bars[0][0]
    assert [(begin - origin, length) for begin, length in bars] == [(0, 12), (12, 6), (18, 6)]
    assert "1.0 GiB, 4.0 GiB/s" in shown[-2]


@given(st.lists(st.tuples(st.sampled_from(PhaseKind), SECONDS, SECONDS), max_size=12), SECONDS)
def test_every_phase_is_seen_whatever_it_took(
    parts: list[tuple[PhaseKind, float, float]], first: float
) -> None:
    phases = tuple(Phase(kind, start, took, 7) for kind, start, took in parts)
    shown = lines(waterfall(_receipt(phases, first)), 200)
    bars = [line.count("━") for line in shown if "━" in line]
    assert len(bars) == len(phases)
    assert all(1 <= one <= 24 for one in bars)


def test_the_receipt_of_a_request_is_asked_for(run: Run, control: FakeControl) -> None:
    receipt = finished(0).finished.receipt
    answer = cluster_pb.GetReceiptResponse(request_id="r-1", deployment="tiny", receipt=receipt)
    for _ in range(2):
        control.reply("GetReceipt", answer)
    shown = run("receipt").out.splitlines()
    assert shown[:2] == [
        "r-1 of tiny",
        "1250.0 ms to the first token, cold, SSD, an engine unknown on n-1",
    ]
    assert json.loads(run("receipt", "r-1", "--json").out)["receipt"]["node_id"] == "n-1"
    assert [one.request_id for one in control.requests["GetReceipt"]] == ["", "r-1"]
