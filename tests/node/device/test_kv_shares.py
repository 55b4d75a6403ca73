"""Shares of a node's memory for KV caches: what they add up to, and who gets what is free."""

from hypothesis import given
from hypothesis import strategies as st

from sllm.node.device.kv_shares import Claim, divide, wanted

BYTES = st.integers(0, 1000)


@st.composite
def claims(draw: st.DrawFn) -> Claim:
    granted = draw(BYTES)
    return Claim(draw(BYTES), draw(BYTES), granted, granted + draw(BYTES))


@st.composite
def nodes(draw: st.DrawFn) -> tuple[int, dict[int, Claim], int]:
    """A budget for all that cannot be given up, and for some more."""
    found = dict(enumerate(draw(st.lists(claims(), min_size=1, max_size=6))))
    budget = sum(claim.least for claim in found.values()) + draw(st.integers(0, 4000))
    return budget, found, draw(st.integers(0, 200))


@given(nodes())
def test_shares_are_within_the_budget_and_nobody_lacks_what_they_cannot_give_up(
    node: tuple[int, dict[int, Claim], int],
) -> None:
    budget, found, kept = node
    shares = divide(budget, found, kept)
    assert sum(shares.values()) <= budget
    for who, claim in found.items():
        assert claim.least <= shares[who] <= max(claim.all, claim.granted)


@given(nodes())
def test_what_is_free_goes_to_those_who_want_it(node: tuple[int, dict[int, Claim], int]) -> None:
    budget, found, kept = node
    shares = divide(budget, found, kept)
    if any(shares[who] < claim.all for who, claim in found.items()):
        assert sum(shares.values()) >= budget - kept
        unused = sum(max(0, shares[who] - claim.all) for who, claim in found.items())
        assert unused <= kept, "nobody keeps what they do not want, but of what starts may have"
    if any(shares[who] < claim.own for who, claim in found.items()):
        assert sum(shares.values()) == budget
        for who, claim in found.items():
            assert shares[who] <= claim.own, "nobody has more than theirs before all have theirs"


@given(nodes())
def test_those_who_lack_the_same_get_the_same(node: tuple[int, dict[int, Claim], int]) -> None:
    budget, found, kept = node
    claim = found[0]
    shares = divide(budget + claim.least, {**found, -1: claim}, kept)
    assert abs(shares[0] - shares[-1]) <= 4, "but for a byte in each round"


def test_requests_that_wait_want_as_much_as_those_that_run() -> None:
    assert wanted(used=0, least=10, running=0, waiting=0) == 0
    assert wanted(used=80, least=10, running=4, waiting=0) == 100
    assert wanted(used=80, least=10, running=4, waiting=3) == 160
    assert wanted(used=0, least=10, running=0, waiting=3) == 30
