"""What a real trace's results are counted as."""

import math

import pytest

import sllm
from bench.live.asking import Asked
from bench.live.killing import Blow, unexcused
from bench.live.results import first_tokens, percentile, starts_of, unknown_estimates
from bench.simulation.workload import Arrival


def receipt(
    instance_id: str = "i1", *, cold: bool = True, estimate: float | None = 1.0, actual: float = 1.0
) -> sllm.Receipt:
    tier = sllm.Tier.SSD if cold else None
    return sllm.Receipt(
        cold=cold,
        from_tier=tier,
        phases=(),
        time_to_first_token=1.0,
        estimated_start=estimate if cold else None,
        node_id="node-1",
        instance_id=instance_id,
        actual_start=actual if cold else None,
    )


def asked(
    began: float = 0.0,
    ended: float | None = 5.0,
    *,
    nodes: tuple[str, ...] = ("node-1",),
    error: str = "",
    of: sllm.Receipt | None = None,
) -> Asked:
    one = Asked(Arrival(began, "m", 1, 1), began, began + 0.5, ended, nodes)
    one.error, one.receipt = error, of
    return one


def test_a_start_counts_once_however_many_waited_for_it() -> None:
    requests = [asked(of=receipt("i1")), asked(of=receipt("i1")), asked(of=receipt("i2"))]
    requests.append(asked(of=receipt("i3", cold=False)))
    requests.append(asked(of=receipt("i4", estimate=None)))

    assert len(starts_of(requests)) == 2
    assert unknown_estimates(requests) == 1


@pytest.mark.parametrize(
    ("estimate", "actual", "ratio"),
    [
        (0.25, 0.2, 0.5),  # 50 ms of 100 ms
        (1.0, 2.0, 2.5),  # 1 s of 400 ms
        (2.0, 2.0, 0.0),
    ],
)
def test_an_estimate_may_be_off_by_a_fifth_or_a_tenth_of_a_second(
    estimate: float, actual: float, ratio: float
) -> None:
    (start,) = starts_of([asked(of=receipt(estimate=estimate, actual=actual))])

    assert start.ratio == pytest.approx(ratio)


def test_first_tokens_are_told_apart_by_the_way_to_the_weights() -> None:
    requests = [asked(of=receipt()), asked(of=receipt(cold=False)), asked(error="NODE_LOST")]

    assert first_tokens(requests) == {"cold from SSD": [0.5], "warm": [0.5]}


def test_there_is_no_percentile_of_nothing() -> None:
    assert math.isnan(percentile([], 95))


KILLED = Blow("node-1", "SIGKILL", at=2.0, back=9.0)
CONTROL = Blow("control", "SIGKILL", at=2.0, back=4.0)


@pytest.mark.parametrize(
    ("one", "blow", "excused"),
    [
        (asked(0.0, 2.5, error="NODE_LOST"), KILLED, True),
        (asked(0.0, 2.5, nodes=("node-2",), error="NODE_LOST"), KILLED, False),
        (asked(0.0, 1.0, error="NODE_LOST"), KILLED, False),
        (asked(3.0, 4.0, error="NODE_LOST"), KILLED, False),
        (asked(0.0, 2.5, nodes=("node-3",), error="UNREACHABLE"), CONTROL, True),
        (asked(3.0, 3.1, nodes=(), error="UNREACHABLE"), CONTROL, True),
        (asked(8.0, 8.1, nodes=(), error="UNREACHABLE"), CONTROL, False),
    ],
)
def test_only_what_was_on_the_killed_server_is_excused(
    one: Asked, blow: Blow, excused: bool
) -> None:
    assert unexcused([one], [blow]) == ([] if excused else [one])


def test_what_has_no_result_has_failed() -> None:
    well, hanging = asked(of=receipt()), asked(ended=None)

    assert unexcused([well, hanging], []) == [hanging]
