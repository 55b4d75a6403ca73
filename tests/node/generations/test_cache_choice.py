"""The choice between tokens and pages: what is sooner, by what was measured."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sllm.node.generations.cache_choice import Costs, Estimate, Lack, Way, estimate

PAGE, SIZE = 16, 100_000
KNOWN = Costs(
    seconds_per_token=0.01,
    link_bytes_per_second=1e7,
    memory_bytes_per_second=1e9,
    asking_seconds=0.1,
)


def lack(total: int, computed: int = 0) -> Lack:
    return Lack(computed, total, PAGE, SIZE)


@pytest.mark.parametrize(
    ("total", "changed", "way"),
    [
        pytest.param(1000, {}, Way.PAGES, id="10 s of computing, 0.7 s of bytes"),
        pytest.param(10, {}, Way.TOKENS, id="there is no whole page"),
        pytest.param(16, {}, Way.TOKENS, id="the last token is in no cache yet"),
        pytest.param(17, {}, Way.PAGES, id="one page: 170 ms of computing, 120 ms otherwise"),
        pytest.param(17, {"asking_seconds": 0.2}, Way.TOKENS, id="asking takes longer"),
        pytest.param(1000, {"link_bytes_per_second": 1e5}, Way.TOKENS, id="the link is slow"),
        pytest.param(1000, {"seconds_per_token": 1e-4}, Way.TOKENS, id="computing is fast"),
        pytest.param(1000, {"memory_bytes_per_second": 1e6}, Way.TOKENS, id="memory is slow"),
        pytest.param(1000, {"seconds_per_token": None}, Way.TOKENS, id="the pace is not known"),
        pytest.param(1000, {"link_bytes_per_second": None}, Way.TOKENS, id="nor is the link"),
    ],
)
def test_the_sooner_way_is_chosen(total: int, changed: dict[str, float], way: Way) -> None:
    assert estimate(lack(total), replace(KNOWN, **changed)).way is way


def test_what_is_there_is_left_out() -> None:
    rest = lack(1000, computed=905)
    assert (rest.first_page, rest.pages, rest.tokens, rest.rest) == (56, 6, 95, 8)
    assert lack(1000, computed=1000).pages == 0
    assert estimate(lack(984, computed=976), KNOWN) == Estimate(8 * 0.01, None)


TIMES = st.floats(1e-6, 1e3)


@given(
    total=st.integers(1, 5000),
    computed=st.integers(0, 5000),
    pace=TIMES | st.none(),
    link=st.floats(1e2, 1e12) | st.none(),
    asking=TIMES,
)
def test_it_is_never_the_later_one_by_what_is_known(
    total: int, computed: int, pace: float | None, link: float | None, asking: float
) -> None:
    lacking = lack(total, min(computed, total))
    found = estimate(lacking, Costs(pace, link, 1e9, asking))
    if found.way is Way.PAGES:
        assert lacking.pages
        assert found.by_pages is not None
        assert found.by_tokens is not None
        assert found.by_pages < found.by_tokens
    elif found.by_pages is not None:
        assert found.by_tokens is not None
        assert found.by_tokens <= found.by_pages
    else:
        assert pace is None or link is None or not lacking.pages
    covered = lacking.pages * PAGE + lacking.rest - (lacking.computed - lacking.first_page * PAGE)
    assert covered == lacking.tokens, "each token comes one way or the other"


@given(total=st.integers(1, 5000), link=st.floats(1e3, 1e12), times=st.floats(1, 1e3))
def test_what_is_chosen_on_a_slow_link_is_chosen_on_a_faster_one(
    total: int, link: float, times: float
) -> None:
    slow = estimate(lack(total), replace(KNOWN, link_bytes_per_second=link))
    fast = estimate(lack(total), replace(KNOWN, link_bytes_per_second=link * times))
    assert slow.way is Way.TOKENS or fast.way is Way.PAGES
