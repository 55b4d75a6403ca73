"""What every store holds: what was answered is there for the next one, and is done once."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from sllm import errors
from sllm.control.cluster.specs import AdapterInfo, ModelInfo
from sllm.control.cluster.tiers import Tier
from sllm.control.etcd.client import Etcd
from sllm.control.state.etcd import EtcdStore
from sllm.control.state.sqlite import SqliteStore
from sllm.control.state.store import Store
from sllm.control.tenants.limits import Limits
from sllm.control.types.calls import DONE_ALONE, UNASKED, AnswerFormat, Call, Done
from sllm.control.types.pins import Pin, Place
from sllm.embedding.purpose import Purpose, Task
from tests.control.shapes import call, deployment
from tests.etcd import EtcdServer
from tests.properties import examples

ONE = deployment("one")
PINNED: AnswerFormat[Pin] = AnswerFormat(lambda _: b"pinned", lambda _: pin("one"))

Opener: TypeAlias = Callable[[], Store]
"""Opens the same store each time; the one before has to be closed."""


def pin(name: str, tier: Tier = Tier.SSD, node_id: str = "n/1", until: float | None = 5.5) -> Pin:
    return Pin(Place(name, tier, node_id), until)


def _sqlite(path: Path) -> Iterator[Opener]:
    yield lambda: SqliteStore(path / "deeper" / "state.db")


def _etcd(server: EtcdServer) -> Iterator[Opener]:
    etcd = Etcd(server.config())
    yield lambda: EtcdStore(etcd)
    etcd.close()


@pytest.fixture(params=["sqlite", "etcd"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opener]:
    if request.param == "sqlite":
        yield from _sqlite(tmp_path)
    else:
        yield from _etcd(request.getfixturevalue("etcd_server"))


@pytest.fixture
def store(opened: Opener) -> Iterator[Store]:
    store = opened()
    yield store
    store.close()


def test_deployments_come_back_as_they_were(opened: Opener) -> None:
    store = opened()
    engine = replace(ONE.spec.engine, kv_cache_tokens=5)
    full = replace(ONE, spec=replace(ONE.spec, engine=engine, chat_template="{{ 'hi' }}"))
    store.put(full, call(""), b"answer", 1.0)
    store.put(deployment("another"), call(""), b"answer", 1.0)
    adapter = AdapterInfo(4, ("q_proj", "v_proj"), "A")
    over = replace(
        deployment("over"),
        spec=replace(deployment("over").spec, base="one"),
        model=replace(ONE.model, adapter=adapter),
    )
    store.put(over, call(""), b"answer", 1.0)
    store.close()
    again = opened()
    assert again.deployments() == [deployment("another"), full, over]
    again.close()


def test_a_repeated_call_gets_the_first_answer_and_changes_nothing(store: Store) -> None:
    first = call("id")
    assert store.recall(first) is None
    assert store.put(ONE, first, b"first", 1.0) == b"first"
    assert store.put(deployment("one", size_bytes=7), first, b"second", 2.0) == b"first"
    assert store.remember(first, b"third", 2.0) == b"first"
    assert store.recall(first) == b"first"
    assert store.deployments() == [ONE]


def test_what_is_deleted_again_by_the_same_call_stays(store: Store) -> None:
    deletion = Call("id", "content", DONE_ALONE)
    store.put(ONE, call(""), b"", 1.0)
    store.delete("one", deletion, 2.0)
    assert store.deployments() == []
    store.put(ONE, call(""), b"", 3.0)
    store.delete("one", deletion, 4.0)
    assert store.recall(deletion) is Done.DONE
    assert store.deployments() == [ONE]


def test_an_id_is_for_one_content(store: Store) -> None:
    store.put(ONE, call("id"), b"first", 1.0)
    with pytest.raises(errors.RequestIdInUse):
        store.put(deployment("two"), call("id", "other"), b"second", 1.0)
    with pytest.raises(errors.RequestIdInUse):
        store.recall(call("id", "other"))
    assert store.deployments() == [ONE]


def test_calls_without_an_id_are_not_remembered(store: Store) -> None:
    store.put(ONE, call(""), b"first", 1.0)
    assert store.put(ONE, call("", "other"), b"second", 1.0) == b"second"
    assert store.recall(call("")) is None


def test_what_becomes_known_of_a_model_is_kept(store: Store) -> None:
    store.put(ONE, call(""), b"", 1.0)
    model = ModelInfo("Fake", 1, 2, 3, "digest")
    store.set_model("one", model)
    store.set_model("nobody", model)
    assert [one.model for one in store.deployments()] == [model]
    store.delete("one", UNASKED, 1.0)
    assert store.deployments() == []


def test_what_a_model_is_for_is_kept(store: Store) -> None:
    purpose = Purpose(Task.SCORE, labels=("good", "bad"), activation="softmax")
    known = deployment("one", purpose=purpose)
    store.put(known, call(""), b"", 1.0)
    (kept,) = store.deployments()
    assert kept == known
    assert kept.model.purpose.task is Task.SCORE


def test_pins_go_one_by_one_and_with_their_deployment(store: Store) -> None:
    both = [pin("one"), pin("one", Tier.DRAM, "n2", None)]
    other = pin("one-more")
    for one in (*both, other):
        store.put_pin(one, Call("", "content", PINNED), 1.0)
    assert set(store.pins()) == {*both, other}
    assert store.delete_pins([both[0].place], call(""), b"unpinned", 1.0) == b"unpinned"
    assert set(store.pins()) == {both[1], other}
    store.delete("one", UNASKED, 1.0)
    assert store.pins() == [other]


def test_drains_are_kept(opened: Opener) -> None:
    store = opened()
    store.set_drained("n1", True, UNASKED, 1.0)
    store.set_drained("n/2", True, UNASKED, 1.0)
    store.set_drained("n1", False, UNASKED, 1.0)
    store.close()
    again = opened()
    assert again.drained() == ["n/2"]
    again.close()


def test_a_new_store_is_there(store: Store) -> None:
    store.check()
    assert not store.contents().anything


def test_limits_of_tenants_come_back_as_they_were(opened: Opener) -> None:
    store = opened()
    bounded = Limits(requests=3, pinned_bytes=10**15, weight=0.5)
    store.put_tenant("acme", Limits(queued=1), UNASKED, 1.0)
    store.put_tenant("acme", bounded, Call("id", "content", DONE_ALONE), 1.0)
    store.put_tenant("acme", Limits(), Call("id", "content", DONE_ALONE), 2.0)
    store.put_tenant("b", Limits(), UNASKED, 1.0)
    store.close()
    again = opened()
    assert again.tenants() == again.contents().tenants == {"acme": bounded, "b": Limits()}
    again.close()


# --- against a model -----------------------------------------------------------------------------

_NAMES = st.sampled_from(["a", "a-b", "b"])
_IDS = st.sampled_from(["", "r1", "r2", "r3"])
_NODES = st.sampled_from(["n1", "n2"])
_TIERS = st.sampled_from([Tier.SSD, Tier.DRAM])


def _answer_of(call_id: str, what: str, answer: bytes) -> Call[bytes]:
    return Call(call_id, what, AnswerFormat(bytes, bytes))


class _Model(RuleBasedStateMachine):
    """Calls in any order, some repeated, some over a store that was opened anew."""

    opened: Opener

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[str, int] = {}
        self.pinned: set[Place] = set()
        self.drained: set[str] = set()
        self.answers: dict[str, tuple[str, bytes]] = {}

    @initialize()
    def open(self) -> None:
        self.store = self.opened()
        contents = self.store.contents()
        for one in contents.deployments:
            self.store.delete(one.name, UNASKED, 0.0)
        for node_id in contents.drained:
            self.store.set_drained(node_id, False, UNASKED, 0.0)
        self.answers = {
            one.request_id: (one.fingerprint, one.answer) for one in contents.answers
        }  # an id is used up for good

    def _expected(self, call_id: str, what: str, answer: bytes) -> bytes | None:
        """The first answer to a call, or None if it is of another content."""
        known = self.answers.get(call_id)
        if not call_id or known is None:
            return answer
        return known[1] if known[0] == what else None

    def _does(self, call_id: str, what: str, answer: bytes, done: Callable[[], bytes]) -> bool:
        """Whether a call is to change something; its answer is looked at."""
        expected = self._expected(call_id, what, answer)
        if expected is None:
            with pytest.raises(errors.RequestIdInUse):
                done()
            return False
        assert done() == expected
        fresh = not call_id or call_id not in self.answers
        if call_id:
            self.answers.setdefault(call_id, (what, answer))
        return fresh

    @rule(name=_NAMES, size=st.integers(1, 3), call_id=_IDS)
    def put(self, name: str, size: int, call_id: str) -> None:
        what, answer = f"put {name} {size}", f"{name} {size}".encode()
        one, asked = deployment(name, size_bytes=size), _answer_of(call_id, what, answer)
        if self._does(call_id, what, answer, lambda: self.store.put(one, asked, answer, 1.0)):
            self.sizes[name] = size

    @rule(name=_NAMES, call_id=_IDS)
    def delete(self, name: str, call_id: str) -> None:
        what, asked = f"delete {name}", Call(call_id, f"delete {name}", DONE_ALONE)

        def done() -> bytes:
            self.store.delete(name, asked, 1.0)
            return Done.DONE.value

        if self._does(call_id, what, Done.DONE.value, done):
            self.sizes.pop(name, None)
            self.pinned = {one for one in self.pinned if one.deployment != name}

    @rule(name=_NAMES, size=st.integers(4, 6))
    def learn(self, name: str, size: int) -> None:
        self.store.set_model(name, deployment(name, size_bytes=size).model)
        if name in self.sizes:
            self.sizes[name] = size

    @rule(name=_NAMES, tier=_TIERS, node_id=_NODES)
    def put_pin(self, name: str, tier: Tier, node_id: str) -> None:
        one = pin(name, tier, node_id)
        self.store.put_pin(one, Call("", "pin", PINNED), 1.0)
        self.pinned.add(one.place)

    @rule(name=_NAMES, tier=_TIERS, node_id=_NODES, call_id=_IDS)
    def unpin(self, name: str, tier: Tier, node_id: str, call_id: str) -> None:
        place, what = Place(name, tier, node_id), f"unpin {name} {tier} {node_id}"
        asked = _answer_of(call_id, what, b"unpinned")
        done = lambda: self.store.delete_pins([place], asked, b"unpinned", 1.0)  # noqa: E731
        if self._does(call_id, what, b"unpinned", done):
            self.pinned.discard(place)

    @rule(node_id=_NODES, drained=st.booleans())
    def drain(self, node_id: str, drained: bool) -> None:
        self.store.set_drained(node_id, drained, UNASKED, 1.0)
        (self.drained.add if drained else self.drained.discard)(node_id)

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = self.opened()

    @rule()
    def look(self) -> None:
        found = {one.name: one.model.size_bytes for one in self.store.deployments()}
        assert found == self.sizes
        assert {one.place for one in self.store.pins()} == self.pinned
        assert set(self.store.drained()) == self.drained

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.look()
            for one in self.store.pins():
                self.store.delete_pins([one.place], call(""), b"", 1.0)
            self.store.close()


@pytest.mark.hypothesis
def test_any_calls_do_what_a_model_says(opened: Opener) -> None:
    machine = type("Machine", (_Model,), {"opened": staticmethod(opened)})
    run_state_machine_as_test(machine, settings=examples(15, stateful_step_count=25))
