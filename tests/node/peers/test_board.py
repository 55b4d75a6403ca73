"""Whose turn it is: the rules, on their own, and whole clusters of boards that play them out."""

import random
from collections.abc import Sequence
from functools import partial

import pytest

from sllm.checkpoint.importing.exchange import Turn
from sllm.node.peers.board import ASKING_SECONDS, MEETING_SECONDS, MOST_OF_ONE, Board
from sllm.node.peers.news import News
from sllm.node.tiers.types import Tier
from tests.node.peers.simulated import Simulation

COUNT = 60
RATE = 10.0
NOTHING = News(Tier.REMOTE)


def board(own: str = "a", written: frozenset[int] = frozenset(), fellows: str = "") -> Board:
    one = Board(own, COUNT, written)
    for name in fellows:
        one.join(name, fellow=True)
        one.told(name, NOTHING, 0.0)
    return one


def with_holders(**tiers: Tier) -> Board:
    one = board()
    for name, tier in tiers.items():
        one.join(name, fellow=False)
        one.told(name, News(tier, whole=True), 0.0)
    return one


def everything(one: Board, now: float = 0.0) -> list[Turn]:
    """All turns that can be taken without one of them ending."""
    return list(iter(lambda: one.take(now), None))


def test_alone_all_come_from_the_source_in_order_and_what_was_written_first() -> None:
    one = board(written=frozenset({7, 5}))
    turns = everything(one)
    assert [turn.giver for turn in turns] == [None] * COUNT
    chunks = [turn.chunk for turn in turns]
    assert chunks == [5, 7, *(n for n in range(COUNT) if n not in (5, 7))]


def test_the_source_is_not_asked_for_what_a_node_holds() -> None:
    one = board()
    one.join("h", fellow=False)
    assert one.take(0.0) is None, "it has not answered"
    one.told("h", News(Tier.SSD, whole=True), 0.0)
    turns = everything(one)
    assert turns == [Turn(chunk, "h") for chunk in range(MOST_OF_ONE)]
    one.done(turns[0], 0.0)
    assert one.take(0.0) == Turn(MOST_OF_ONE, "h")


def test_memory_is_asked_before_disk() -> None:
    one = with_holders(disk=Tier.SSD, memory=Tier.DRAM)
    assert [turn.giver for turn in everything(one)] == ["memory"] * 2 + ["disk"] * 2


def test_a_node_that_leaves_is_done_without_and_its_chunks_come_from_elsewhere() -> None:
    one = with_holders(h=Tier.SSD)
    turns = everything(one)
    one.leave("h")
    for turn in turns:
        one.failed(turn)
    assert {turn.chunk for turn in everything(one)} == set(range(COUNT))


def test_a_chunk_goes_on_with_another_who_has_it() -> None:
    one = with_holders(g=Tier.SSD, h=Tier.SSD)
    turn = one.take(0.0)
    assert turn is not None
    assert turn.giver
    one.leave(turn.giver)
    other = one.instead(turn)
    assert other is not None
    assert other.chunk == turn.chunk
    assert {turn.giver, other.giver} == {"g", "h"}
    one.leave(other.giver or "")
    assert one.instead(other) is None


def test_fellows_are_met_before_any_chunk_is_begun() -> None:
    one = board()
    one.join("b", fellow=True, awaited_until=MEETING_SECONDS)
    assert one.take(MEETING_SECONDS / 2) is None
    assert one.take(MEETING_SECONDS * 1.1), "one that does not answer is waited for in vain"


def test_one_that_calls_is_not_waited_for() -> None:
    one = board()
    one.join("b", fellow=True, awaited_until=MEETING_SECONDS)
    one.join("b", fellow=True)
    assert one.take(0.0), "it knows of this node: it takes nothing that is this one's"


def test_one_that_is_told_of_later_changes_nothing_between_the_others() -> None:
    """The others hear of it at different times, and must not both take a chunk meanwhile."""
    boards = {"a": board("a", fellows="bc"), "b": board("b", fellows="a")}
    taken: dict[str, set[int]] = {"a": set(), "b": set()}
    for name, one in boards.items():
        for _ in range(COUNT // 8):
            turn = one.take(0.0)
            assert turn
            taken[name].add(turn.chunk)
            one.done(turn, 0.0)
    assert not taken["a"] & taken["b"]


def test_one_that_has_nothing_left_to_begin_is_left_half_of_what_another_has() -> None:
    one, other = board("a", fellows="b"), board("b", fellows="a")
    while one.to_ask(0.0) is None:
        turn = one.take(0.0)
        assert turn
        one.done(turn, 0.0)
    assert one.to_ask(0.0) is None, "it has just asked"
    left = other.leave_to("a")
    assert left
    one.told("b", News(Tier.REMOTE, left=dict.fromkeys(left, "a")), 0.0)
    assert one.to_ask(ASKING_SECONDS * 2) is None
    mine = {turn.chunk for turn in everything(one)}
    others = {turn.chunk for turn in everything(other)}
    assert mine
    assert mine <= set(left)
    assert not others & set(left)


def test_whoever_has_begun_a_chunk_gets_it_although_another_comes_that_would_own_it() -> None:
    one = board("a", fellows="b")
    one.told("b", News(Tier.REMOTE, begun=range(COUNT)), 0.0)
    assert one.take(0.0) is None
    one.leave("b")
    assert one.take(0.0), "it is gone, and what it had begun is not"


def test_what_was_written_before_counts_until_it_was_looked_at() -> None:
    """A turn that ends was begun: the source is asked for no more at a time than is meant."""
    one = board(written=frozenset(range(30)), fellows="bcdefgh")
    for _ in range(30):
        turn = one.take(0.0)
        assert turn
        one.done(turn, 0.0)
    assert one._from_source == 0
    assert len(everything(one)) == 1


# --- whole clusters -------------------------------------------------------------------------------


def simulated(seed: int, count: int, *, holder: bool, gap: float) -> Simulation:
    """Nodes that begin one after the other, with pauses of up to `gap` seconds."""
    simulation, chance, now = Simulation(COUNT, RATE, holders=int(holder)), random.Random(seed), 0.0
    simulation.start("n0")
    for number in range(1, count):
        now += chance.uniform(0.0, gap)
        simulation.at(now, partial(simulation.start, f"n{number}"))
    return simulation


@pytest.mark.parametrize("holder", [False, True])
@pytest.mark.parametrize(("seed", "gap"), [(0, 0.0), (1, 0.01), (2, 0.1), (3, 1.0)])
@pytest.mark.parametrize("count", [2, 8])
def test_each_chunk_leaves_the_source_once_for_all_fellows(
    seed: int, gap: float, count: int, *, holder: bool
) -> None:
    simulation = simulated(seed, count, holder=holder, gap=gap)
    simulation.run()
    once = dict.fromkeys(range(COUNT), 1)
    assert (simulation.asked, simulation.of_holders) == (({}, once) if holder else (once, {}))


@pytest.mark.parametrize(("holder", "times"), [(True, 1.3), (False, 1.45)])
def test_eight_have_it_in_little_more_than_one_has_it(times: float, *, holder: bool) -> None:
    """By the simulation's clock; some of it is what is on its way at the beginning and the end."""
    simulation = simulated(0, 8, holder=holder, gap=0.01)
    simulation.run()
    assert simulation.now < times * COUNT / RATE


def test_what_others_have_on_disk_is_not_asked_for_while_they_look_at_it() -> None:
    simulation = Simulation(COUNT, RATE)
    simulation.start("n0", written=frozenset(range(40)))
    simulation.start("n1")
    simulation.run()
    asked = [chunk for chunk, times in simulation.asked.items() if times > 1]
    assert not asked


@pytest.mark.parametrize("seed", range(8))
def test_whoever_dies_the_others_get_all(seed: int) -> None:
    chance = random.Random(seed)
    simulation = simulated(seed, 6, holder=bool(seed % 2), gap=0.1)
    for name in chance.sample(range(6), 3):
        simulation.at(chance.uniform(1.0, 8.0), partial(simulation.kill, f"n{name}"))
    simulation.run()
    lacking: Sequence[int] = [chunk for chunks in simulation.lacking().values() for chunk in chunks]
    assert not lacking


@pytest.mark.parametrize("seed", [29, 74, 206, *range(5)])
def test_whoever_is_not_heard_any_more_all_get_all(seed: int) -> None:
    """Nodes then differ on who is to get what, and what was left to one may reach it no more."""
    chance = random.Random(seed)
    simulation = simulated(seed, 8, holder=bool(seed % 2), gap=0.1)
    for _ in range(16):
        name, other = (f"n{number}" for number in chance.sample(range(8), 2))
        simulation.at(chance.uniform(1.0, 9.0), partial(simulation.part, name, other))
    simulation.run()
    lacking = [chunk for chunks in simulation.lacking().values() for chunk in chunks]
    assert not lacking


def test_what_each_takes_for_anothers_is_got_in_the_end() -> None:
    one = board("a", fellows="b")
    found, now = set[int](), 0.0
    while len(found) < COUNT and now < 600.0:
        now += 0.25
        if turn := one.take(now):
            one.done(turn, now)
            found.add(turn.chunk)
    assert found == set(range(COUNT))


def test_one_that_stands_still_is_done_without_in_the_end() -> None:
    one = board("a", fellows="b")
    one.told("b", News(Tier.REMOTE, begun=(5,)), 0.0)
    found, now = set[int](), 0.0
    while len(found) < COUNT and now < 600.0:
        now += 0.25
        turn = one.take(now)
        if turn is not None:
            one.done(turn, now)
            found.add(turn.chunk)
        elif one.to_ask(now) == "b":
            one.told("b", News(Tier.REMOTE, left={c: "a" for c in range(COUNT) if c != 5}), now)
    assert found == set(range(COUNT))
