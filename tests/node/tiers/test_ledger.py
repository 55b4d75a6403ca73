import pytest
from hypothesis import given
from hypothesis import strategies as st

from sllm.clock import ManualClock
from sllm.errors import ModelTooLarge, NoCapacity
from sllm.node.tiers.ledger import HALF_LIFE_SECONDS, Ledger
from sllm.node.tiers.types import Tier


def ledger_of(capacity: int, clock: ManualClock | None = None, **sizes: int) -> Ledger:
    ledger = Ledger(Tier.SSD, capacity, clock)
    for digest, size in sizes.items():
        ledger.add(digest, size)
    return ledger


def test_the_least_recently_used_goes_first_and_no_more_than_needed() -> None:
    ledger = ledger_of(100, a=30, b=30, c=30)
    ledger.touch("a")
    assert ledger.reserve(40) == ("b",)
    ledger.check_integrity(["a", "c"])
    assert ledger.used == 100


def test_of_what_was_used_as_often_the_one_used_longest_ago_goes_first() -> None:
    clock = ManualClock()
    ledger = Ledger(Tier.SSD, 100, clock)
    for digest in ("a", "b"):
        ledger.add(digest, 50)
        clock.advance(1.0)
    assert ledger.reserve(10) == ("a",)


def test_what_is_used_often_outlives_what_was_used_last() -> None:
    clock = ManualClock()
    ledger = ledger_of(100, clock, often=50)
    for _ in range(3):
        clock.advance(1.0)
        ledger.touch("often")
    ledger.add("once", 50)
    assert ledger.reserve(10) == ("once",)


def test_old_uses_fade() -> None:
    clock = ManualClock()
    ledger = ledger_of(100, clock, formerly=50)
    for _ in range(7):
        ledger.touch("formerly")
    clock.advance(4 * HALF_LIFE_SECONDS)
    ledger.add("now", 50)
    assert ledger.reserve(10) == ("formerly",)


def test_what_is_waited_for_no_longer_goes_first_unless_it_is_used_again() -> None:
    clock = ManualClock()
    ledger = ledger_of(100, clock, often=50, once=50)
    for _ in range(3):
        ledger.touch("often")
    ledger.wanted_for("often", 10.0)
    ledger.wanted_for("unknown", 10.0)
    clock.advance(9.0)
    assert ledger.least_missed == "once"
    clock.advance(1.0)
    assert ledger.least_missed == "often"
    ledger.touch("often")
    assert ledger.least_missed == "once"


def test_what_takes_longest_to_bring_back_stays() -> None:
    ledger = ledger_of(100, ManualClock(), far=50, near=50)
    ledger.reload_seconds = lambda digest, size: size * (10.0 if digest == "far" else 1.0)
    ledger.touch("near")
    assert ledger.reserve(10) == ("near",)


def test_what_is_small_is_worth_no_less_for_each_byte() -> None:
    ledger = ledger_of(100, ManualClock(), large=80, small=20)
    ledger.reload_seconds = lambda digest, size: float(size)
    ledger.touch("small")
    assert ledger.reserve(20) == ("large",)


def test_what_larger_victims_make_needless_stays() -> None:
    clock = ManualClock()
    ledger = Ledger(Tier.SSD, 100, clock)
    for digest, size in (("small", 20), ("large", 80)):
        ledger.add(digest, size)
        clock.advance(1.0)
    assert ledger.reserve(70) == ("large",)


def test_nothing_goes_while_there_is_room() -> None:
    assert ledger_of(100, a=60).reserve(40) == ()


def test_what_is_leased_stays() -> None:
    ledger = ledger_of(100, a=50)
    ledger.add("b", 50).leases = 1
    assert ledger.reserve(50) == ("a",)
    ledger.check_integrity(["b"])


def test_two_reservations_do_not_count_on_the_same_room() -> None:
    ledger = ledger_of(100)
    ledger.reserve(60)
    with pytest.raises(NoCapacity, match="takes 60 bytes; of the 100 of the SSD tier 40 are free"):
        ledger.reserve(60)
    ledger.unreserve(60)
    assert ledger.reserve(60) == ()


def test_in_vain_nothing_is_evicted() -> None:
    ledger = ledger_of(100, a=20)
    ledger.add("b", 50).leases = 1
    with pytest.raises(NoCapacity, match="20 can be evicted and 50 are leased"):
        ledger.reserve(60)
    ledger.check_integrity(["a", "b"])


def test_what_can_never_fit_is_too_large() -> None:
    with pytest.raises(ModelTooLarge, match=r"101 bytes.*100 in all"):
        ledger_of(100, a=20).reserve(101)


@given(st.lists(st.tuples(st.integers(1, 110), st.booleans(), st.integers(0, 1))))
def test_the_books_hold_whatever_happens(steps: list[tuple[int, bool, int]]) -> None:
    ledger, held, reserved = Ledger(Tier.DRAM, 100), dict[str, int](), list[int]()
    for step, (size, lands, leases) in enumerate(steps):
        try:
            victims = ledger.reserve(size)
        except (NoCapacity, ModelTooLarge):
            victims = ()
        else:
            reserved.append(size)
        for victim in victims:
            assert held.pop(victim) == 0
        if reserved and lands:
            landed = reserved.pop()
            ledger.unreserve(landed)
            held[str(step)] = leases
            ledger.add(str(step), landed).leases = held[str(step)]
        ledger.check_integrity(held)
        assert ledger.reserved == sum(reserved)
