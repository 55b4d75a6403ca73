"""What every keeper of batches holds: of each request, either it is there or its one result."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeAlias

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from serverlessllm.v1 import batch_service_pb2 as pb

from sllm import errors
from sllm.control.batches.etcd import EtcdBatches
from sllm.control.batches.keeper import BatchKeeper
from sllm.control.batches.store import BatchStore
from sllm.control.etcd.client import Etcd
from sllm.control.etcd.keys import Change, Delete, Put
from sllm.control.state import etcd_writer
from sllm.control.types.batches import Asks, Batch, BatchState, Ended, Item, Outcome
from tests.etcd import EtcdServer
from tests.properties import examples

LARGE = 3 * 2**20 + 7
"""Bytes that etcd does not take at once."""
ROOM = 1 << 26

Opener: TypeAlias = Callable[[], BatchKeeper]
"""Opens the same keeper each time; the one before has to be closed."""


def _sqlite(path: Path) -> Iterator[Opener]:
    yield lambda: BatchStore(path / "batches.db")


def _etcd(server: EtcdServer) -> Iterator[Opener]:
    with closing(Etcd(server.config())) as etcd:
        yield lambda: EtcdBatches(etcd, None, ROOM)


@pytest.fixture(params=["sqlite", "etcd"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opener]:
    if request.param == "sqlite":
        yield from _sqlite(tmp_path)
    else:
        yield from _etcd(request.getfixturevalue("etcd_server"))


@pytest.fixture
def keeper(opened: Opener) -> Iterator[BatchKeeper]:
    with closing(opened()) as keeper:
        yield keeper


def item(number: int, run_id: str = "run", name: str = "a", content: bytes = b"asked") -> Item:
    return Item(run_id, number, f"id-{number}", name, content)


def batch(requests: int, run_id: str = "run", created_at: float = 1.0) -> Batch:
    return Batch(f"of {run_id}", run_id, "print", requests, created_at, 9.0)


def ended(one: Item, outcome: bytes = b"answered", *, is_answer: bool = True) -> Ended:
    return Ended(one, is_answer, outcome)


def made(keeper: BatchKeeper, items: list[Item]) -> Batch:
    keeper.stage(items)
    whole = batch(len(items), items[0].run_id)
    keeper.add(whole)
    return whole


def test_what_was_submitted_comes_back_as_it_was(opened: Opener) -> None:
    embeds = Item("run", 2, "é/\n", "acme:a/b", b"\0\n", Asks.EMBEDDINGS)
    items = [item(0), item(1, content=bytes(LARGE)), embeds, item(3, content=b"")]
    with closing(opened()) as keeper:
        whole = made(keeper, items)
    with closing(opened()) as again:
        assert again.batches() == [whole]
        assert sorted(again.deployments("run")) == ["a", "acme:a/b"]
        assert again.waiting("run", "a", -1, 2) == items[:2]
        assert again.waiting("run", "a", 1, 2) == items[3:]
        assert again.waiting("run", "acme:a/b", -1, 9) == [embeds]
        assert again.waiting("run", "acme:a", -1, 9) == []


def test_the_oldest_batch_comes_first(keeper: BatchKeeper) -> None:
    for run_id, created_at in (("z", 2.0), ("a", 3.0), ("m", 1.0)):
        keeper.add(batch(1, run_id, created_at))
    assert [one.run_id for one in keeper.batches()] == ["m", "z", "a"]


def test_more_requests_than_one_transaction_takes(keeper: BatchKeeper) -> None:
    items = [item(number, content=b"x" * 9_000) for number in range(300)]
    whole = made(keeper, items)
    assert keeper.waiting("run", "a", -1, 999) == items
    after = keeper.record(whole, [ended(one) for one in items], 5.0)
    assert (after.finished, after.ended_at) == (300, 5.0)
    assert [one.number for one in keeper.results("run", 0, 999)] == list(range(300))
    assert keeper.deployments("run") == []


def test_a_result_takes_the_place_of_its_request_once(opened: Opener) -> None:
    items = [item(0), item(1), item(2, content=bytes(LARGE))]
    with closing(opened()) as keeper:
        whole = made(keeper, items)
        first = keeper.record(whole, [ended(items[2], b"\n" * LARGE)], 5.0)
        assert keeper.record(first, [ended(items[2], b"again")], 6.0) == first
    with closing(opened()) as keeper:
        assert keeper.batches() == [first]
        second = keeper.record(
            first, [ended(items[2]), ended(items[0], b"no", is_answer=False)], 7.0
        )
        assert (second.finished, second.failed, second.state) == (1, 1, BatchState.RUNNING)
        assert keeper.results("run", 0, 9) == [Outcome(0, b"\n" * LARGE), Outcome(1, b"no")]
        assert keeper.results("run", 1, 9) == [Outcome(1, b"no")]
        assert keeper.waiting("run", "a", -1, 9) == [items[1]]


def test_of_two_results_that_come_together_the_first_counts(keeper: BatchKeeper) -> None:
    """An answer that waits to be stored when its batch's time is up."""
    items = [item(0), item(1)]
    whole = made(keeper, items)
    twice = [ended(items[0]), ended(items[0], b"late", is_answer=False)]
    after = keeper.record(whole, twice, 5.0)
    assert (after.finished, after.failed, after.state) == (1, 0, BatchState.RUNNING)
    assert keeper.results("run", 0, 9) == [Outcome(0, b"answered")]
    assert keeper.record(after, [ended(items[1])], 6.0).state is BatchState.ENDED


def test_what_is_cancelled_has_no_requests_and_keeps_its_results(opened: Opener) -> None:
    items = [item(0), item(1, content=bytes(LARGE))]
    with closing(opened()) as keeper:
        running = keeper.record(made(keeper, items), [ended(items[0])], 5.0)
        keeper.cancel(running.as_cancelled(6.0))
    with closing(opened()) as keeper:
        assert keeper.batches() == [running.as_cancelled(6.0)]
        assert keeper.deployments("run") == []
        assert keeper.results("run", 0, 9) == [Outcome(0, b"answered")]


def test_what_was_never_submitted_to_its_end_is_gone(opened: Opener) -> None:
    with closing(opened()) as keeper:
        made(keeper, [item(0, "whole")])
        keeper.stage([item(0, "left"), item(1, "left", content=bytes(LARGE))])
        keeper.stage([item(0, "dropped")])
        keeper.unstage("dropped")
        assert keeper.deployments("dropped") == []
    with closing(opened()) as keeper:
        assert keeper.deployments("left") == []
        assert keeper.deployments("whole") == ["a"]


def test_of_a_batch_that_is_deleted_nothing_is_left(keeper: BatchKeeper) -> None:
    items = [item(0, content=bytes(LARGE)), item(1)]
    after = keeper.record(made(keeper, items), [ended(items[0], bytes(LARGE))], 5.0)
    made(keeper, [item(0, "other")])
    keeper.delete(after)
    assert [one.run_id for one in keeper.batches()] == ["other"]
    assert (keeper.deployments("run"), keeper.results("run", 0, 9)) == ([], [])
    assert keeper.deployments("other") == ["a"]


# --- etcd alone -----------------------------------------------------------------------------------


@pytest.fixture
def etcd(etcd_server: EtcdServer) -> Iterator[Etcd]:
    with closing(Etcd(etcd_server.config())) as etcd:
        yield etcd


def test_etcd_holds_no_more_than_it_may(etcd: Etcd) -> None:
    keeper = EtcdBatches(etcd, None, 1_000)
    whole = made(keeper, [item(number, content=b"x" * 300) for number in range(3)])
    with pytest.raises(errors.QueueFull, match="900 are taken"):
        keeper.stage([item(0, "more", content=b"x" * 101)])
    again = EtcdBatches(etcd, None, 1_000)
    with pytest.raises(errors.QueueFull, match="900 are taken"):
        again.stage([item(0, "more", content=b"x" * 101)])
    keeper.delete(whole)
    keeper.stage([item(0, "more", content=b"x" * 101)])


def test_an_answer_without_room_is_a_failure(etcd: Etcd) -> None:
    """So that a batch ends, and its other results can be read."""
    keeper = EtcdBatches(etcd, None, 1_000)
    items = [item(number, content=b"x" * 300) for number in range(3)]
    whole = made(keeper, items)
    after = keeper.record(whole, [ended(one, b"y" * 690) for one in items], 5.0)
    assert (after.finished, after.failed, after.state) == (1, 2, BatchState.ENDED)
    told = [pb.BatchResult.FromString(one.outcome) for one in keeper.results("run", 0, 2)]
    assert [one.failure.reason for one in told] == ["QUEUE_FULL"] * 2
    assert [one.request_id for one in told] == ["id-0", "id-1"]


def test_what_was_recorded_before_an_error_stays_and_is_not_doubled(
    etcd: Etcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = EtcdBatches(etcd, None, ROOM)
    items = [item(number) for number in range(70)]
    whole = made(keeper, items)
    commit, calls = etcd.commit, iter([True, False, True])

    def broken(*args: object, **kwargs: object) -> object:
        if next(calls):
            return commit(*args, **kwargs)  # type: ignore[arg-type]  # passed on as they are
        raise errors.StateUnavailable("etcd refuses: no space; nothing was changed")

    monkeypatch.setattr(etcd, "commit", broken)
    with pytest.raises(errors.StateUnavailable):
        keeper.record(whole, [ended(one) for one in items], 5.0)
    monkeypatch.setattr(etcd, "commit", commit)
    after = keeper.record(whole, [ended(one, str(one.number).encode()) for one in items], 6.0)
    assert after == keeper.batches()[0] == EtcdBatches(etcd, None, ROOM).batches()[0]
    assert (after.finished, after.ended_at) == (70, 6.0)
    told = keeper.results("run", 0, 99)
    assert [one.number for one in told] == list(range(70))
    assert [one.outcome for one in told[:31]] == [b"answered"] * 30 + [b"30"]


def test_of_a_result_that_came_to_nothing_no_part_is_in_the_next(
    etcd: Etcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its leader was gone before all of it was stored, and the next one has another answer."""
    keeper = EtcdBatches(etcd, None, ROOM)
    whole = made(keeper, [item(0)])
    commit = etcd.commit

    def parts_alone(conditions: object, changes: list[Change], *more: object) -> object:
        if any(isinstance(one, Delete) for one in changes):
            raise errors.StateUnavailable("etcd refuses: no space; nothing was changed")
        return commit(conditions, changes, *more)  # type: ignore[arg-type]  # as they are

    monkeypatch.setattr(etcd, "commit", parts_alone)
    with pytest.raises(errors.StateUnavailable):
        keeper.record(whole, [ended(item(0), b"a" * LARGE)], 5.0)
    monkeypatch.setattr(etcd, "commit", commit)
    shorter = b"b" * (LARGE // 2)
    EtcdBatches(etcd, None, ROOM).record(whole, [ended(item(0), shorter)], 6.0)
    assert keeper.results("run", 0, 9) == [Outcome(0, shorter)]


@contextmanager
def answers_lost(etcd: Etcd) -> Iterator[None]:
    """What is changed is, and nobody hears of it."""
    commit = etcd.commit

    def lost(*asked: object) -> object:
        commit(*asked)  # type: ignore[arg-type]  # passed on as they are
        raise errors.StateUnavailable("no answer", retry_after=1.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(etcd, "commit", lost)
        patch.setattr(etcd_writer, "_PATIENCE_SECONDS", 0.0)
        yield


def test_what_is_not_known_to_be_recorded_is_not_written_over(etcd: Etcd) -> None:
    """Whoever leads has other results to record before it hears that it leads no more."""
    keeper = EtcdBatches(etcd, etcd.commit([], [Put("leader", b"me")]).revision, ROOM)
    items = [item(0), item(1)]
    whole = made(keeper, items)
    with answers_lost(etcd), pytest.raises(errors.StateUnavailable):
        keeper.record(whole, [ended(items[0])], 5.0)
    with pytest.raises(errors.NotLeader, match="does not know"):
        keeper.record(whole, [ended(items[1], b"other")], 6.0)
    again = EtcdBatches(etcd, None, ROOM)
    assert again.batches() == [whole.with_results(1, 0, 5.0)]
    assert again.results("run", 0, 9) == [Outcome(0, b"answered")]
    assert again.waiting("run", "a", -1, 9) == [items[1]]


def test_what_may_have_become_a_batch_is_not_unstaged(etcd: Etcd) -> None:
    """It was made one, and the answer to that is lost: whoever submits it takes it back."""
    keeper = EtcdBatches(etcd, None, ROOM)
    keeper.stage([item(0)])
    with answers_lost(etcd), pytest.raises(errors.StateUnavailable):
        keeper.add(batch(1))
    keeper.unstage("run")
    again = EtcdBatches(etcd, None, ROOM)
    assert again.batches() == [batch(1)]
    assert again.waiting("run", "a", -1, 9) == [item(0)]


def test_whoever_leads_no_more_changes_nothing(etcd: Etcd) -> None:
    keeper = EtcdBatches(etcd, 1, ROOM)  # nobody leads, and none did at that revision
    with pytest.raises(errors.NotLeader):
        keeper.stage([item(0)])
    assert EtcdBatches(etcd, None, ROOM).deployments("run") == []


# --- against a model ------------------------------------------------------------------------------

_RUNS = st.sampled_from(["r1", "r2"])
_NUMBERS = st.sets(st.integers(0, 5), min_size=1)


class _Model(RuleBasedStateMachine):
    """Batches that come, go on and end in any order, over keepers that are opened anew."""

    opened: Opener

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[str, Batch] = {}
        self.left: dict[str, set[int]] = {}
        self.told: dict[str, list[bytes]] = {}

    @initialize()
    def begin(self) -> None:
        self.keeper = self.opened()
        for one in self.keeper.batches():
            self.keeper.delete(one)

    @rule(run_id=_RUNS, whole=st.booleans())
    def submit(self, run_id: str, whole: bool) -> None:
        if run_id in self.known:
            return
        self.keeper.stage([item(number, run_id, f"d{number % 2}") for number in range(6)])
        if not whole:
            self.keeper.unstage(run_id)
            return
        self.known[run_id] = batch(6, run_id)
        self.keeper.add(self.known[run_id])
        self.left[run_id], self.told[run_id] = set(range(6)), []

    @rule(run_id=_RUNS, numbers=_NUMBERS)
    def record(self, run_id: str, numbers: set[int]) -> None:
        if run_id not in self.known or self.known[run_id].state is not BatchState.RUNNING:
            return
        mine = [item(number, run_id, f"d{number % 2}") for number in sorted(numbers)]
        new = [str(one.number).encode() for one in mine if one.number in self.left[run_id]]
        told = [ended(one, str(one.number).encode()) for one in mine]
        self.known[run_id] = self.keeper.record(self.known[run_id], told, 5.0)
        self.left[run_id] -= numbers
        self.told[run_id] += new

    @rule(run_id=_RUNS, forget=st.booleans())
    def end(self, run_id: str, forget: bool) -> None:
        if run_id not in self.known:
            return
        if self.known[run_id].state is BatchState.RUNNING:
            self.known[run_id] = self.known[run_id].as_cancelled(6.0)
            self.keeper.cancel(self.known[run_id])
            self.left[run_id] = set()
        elif forget:
            self.keeper.delete(self.known.pop(run_id))
            del self.left[run_id], self.told[run_id]

    @rule()
    def open_anew(self) -> None:
        self.keeper.close()
        self.keeper = self.opened()

    @invariant()
    def is_as_known(self) -> None:
        assert {one.run_id: one for one in self.keeper.batches()} == self.known
        for run_id, left in self.left.items():
            found = [
                one.number
                for name in self.keeper.deployments(run_id)
                for one in self.keeper.waiting(run_id, name, -1, 9)
            ]
            assert sorted(found) == sorted(left)
            told = self.keeper.results(run_id, 0, 9)
            assert [one.outcome for one in told] == self.told[run_id]
            assert [one.number for one in told] == list(range(len(told)))

    def teardown(self) -> None:
        if hasattr(self, "keeper"):
            for one in self.keeper.batches():
                self.keeper.delete(one)
            self.keeper.close()


@pytest.mark.hypothesis
def test_they_are_what_a_model_of_them_says(opened: Opener) -> None:
    machine = type("Model", (_Model,), {"opened": staticmethod(opened)})
    few = examples(12, stateful_step_count=15)
    run_state_machine_as_test(machine, settings=few)
