"""What several clients see of a store at once could have come of one order of their calls."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeAlias

import pytest

from sllm import errors
from sllm.control.election.ballot import Ballot
from sllm.control.etcd.client import Etcd
from sllm.control.state.etcd import EtcdStore
from sllm.control.state.sqlite import SqliteStore
from sllm.control.state.store import Store
from sllm.control.types.calls import DONE_ALONE, AnswerFormat, Call
from tests.control.shapes import deployment
from tests.etcd import EtcdServer, running_etcd
from tests.linearizability import Event, explained

CLIENTS: Final = 4
CALLS: Final = 7
"""Of each client: all orders of more would take long to look at."""
NAMES: Final = ("a", "b")


@dataclass(frozen=True, slots=True)
class Asked:
    """One call of a client."""

    what: str
    """"put", "delete" or "look"."""
    name: str = ""
    size: int = 0
    call_id: str = ""
    """Some are used by several: then only the first of them changes anything."""


Kept: TypeAlias = tuple[tuple[str, int], ...]
"""Deployments by name, with what tells them apart."""
Answers: TypeAlias = tuple[tuple[str, Asked, int], ...]
State: TypeAlias = tuple[Kept, Answers]
Seen: TypeAlias = Kept | int | str
LOOK: Final = Asked("look")
IN_USE: Final = "RequestIdInUse"


def step(state: State, asked: Asked) -> tuple[State, Seen]:
    """What a store does."""
    kept, answers = state
    if asked.what == "look":
        return state, kept
    first = next((one for one in answers if asked.call_id and one[0] == asked.call_id), None)
    if first:
        return state, first[2] if first[1] == asked else IN_USE
    others = [one for one in kept if one[0] != asked.name]
    put = [(asked.name, asked.size)] if asked.what == "put" else []
    told = (asked.call_id, asked, asked.size)
    also = tuple(sorted((*answers, told), key=repr)) if asked.call_id else answers
    return (tuple(sorted([*others, *put])), also), asked.size


def ask(store: Store, asked: Asked) -> Seen:
    """Asks a store."""
    if asked.what == "look":
        return tuple((one.name, one.model.size_bytes) for one in store.deployments())
    what = f"{asked.what} {asked.name} {asked.size}"
    try:
        if asked.what == "delete":
            store.delete(asked.name, Call(asked.call_id, what, DONE_ALONE), 1.0)
            return asked.size
        numbers: AnswerFormat[int] = AnswerFormat(lambda one: str(one).encode(), int)
        one = deployment(asked.name, size_bytes=asked.size)
        return store.put(one, Call(asked.call_id, what, numbers), asked.size, 1.0)
    except errors.RequestIdInUse:
        return IN_USE


def drawn(rng: random.Random, client: int) -> list[Asked]:
    """What one client asks, one after the other."""

    def one(number: int) -> Asked:
        call_id = rng.choice(("", f"{client}-{number}", "shared", "shared too"))
        name = rng.choice(NAMES)
        put = Asked("put", name, 10 * client + number + 1, call_id)
        return rng.choice((put, put, Asked("delete", name, 0, call_id), LOOK, LOOK))

    return [one(number) for number in range(CALLS)]


class Clients:
    """Clients of one store, each in a thread, and what they see."""

    def __init__(self, stores: list[Store]) -> None:
        """One for each client; they may be the same."""
        self.history: list[Event[Asked, Seen]] = []
        self._stores = stores
        self._lock = threading.Lock()

    def run(self, rng: random.Random, beside: Callable[[], None] = lambda: None) -> None:
        """Has all of them ask at once, while something else goes on."""
        plans = [drawn(rng, client) for client in range(len(self._stores))]
        with ThreadPoolExecutor(len(plans)) as pool:
            asking = [pool.submit(self._ask, *one) for one in zip(self._stores, plans, strict=True)]
            beside()
            for one in asking:
                one.result()

    def _ask(self, store: Store, plan: list[Asked]) -> None:
        for asked in plan:
            event: Event[Asked, Seen] = Event(time.monotonic(), None, asked)
            try:
                seen = ask(store, asked)
            except (errors.StateUnavailable, errors.NotLeader):
                if asked.what == "look":
                    continue  # it changes nothing, whenever that is
            else:
                event = replace(event, ended=time.monotonic(), seen=seen)
            with self._lock:
                self.history.append(event)


def check(clients: Clients) -> None:
    """One order explains it all."""
    assert len(clients.history) > CLIENTS
    nothing: State = ((), ())
    told = sorted(clients.history, key=lambda one: one.began)
    assert explained(clients.history, nothing, step), told


class Locked:
    """A store as the control plane uses it: one call at a time."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Callable[..., object]:
        method = getattr(self._store, name)

        def alone(*args: object) -> object:
            with self._lock:
                return method(*args)

        return alone


@pytest.fixture
def etcds(etcd_server: EtcdServer) -> Iterator[Callable[[], Etcd]]:
    """Clients of one part of etcd."""
    with ExitStack() as stack:
        config = etcd_server.config()
        yield lambda: stack.enter_context(closing(Etcd(config)))


@pytest.mark.parametrize("seed", range(4))
def test_sqlite(tmp_path: Path, seed: int) -> None:
    with closing(SqliteStore(tmp_path / "state.db")) as store:
        locked: Store = Locked(store)  # type: ignore[assignment]  # all of its methods
        clients = Clients([locked] * CLIENTS)
        clients.run(random.Random(seed))
        check(clients)


@pytest.mark.parametrize("seed", range(4))
def test_etcd_with_several_writers(etcds: Callable[[], Etcd], seed: int) -> None:
    """Nobody leads here: each change finds that others have changed something meanwhile."""
    clients = Clients([EtcdStore(etcds()) for _ in range(CLIENTS)])
    clients.run(random.Random(seed))
    check(clients)


def _stands_still(server: EtcdServer) -> None:
    server.pause()
    time.sleep(2.5)  # longer than a call has
    server.go_on()


STRIKES: Final = {"stands still": _stands_still, "is killed": EtcdServer.restart}


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("strike", STRIKES)
def test_etcd_that_is_struck(seed: int, strike: str) -> None:
    """A change whose answer was lost is made once: one control plane writes, as a leader does."""
    with running_etcd() as server, closing(Etcd(server.config())) as etcd:
        locked: Store = Locked(EtcdStore(etcd))  # type: ignore[assignment]  # all of its methods
        clients = Clients([locked] * CLIENTS)

        def strikes() -> None:
            for _ in range(3):
                time.sleep(0.02)
                STRIKES[strike](server)

        clients.run(random.Random(seed), strikes)
        check(clients)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(3))
def test_leaders_that_take_turns(etcds: Callable[[], Etcd], seed: int) -> None:
    """Those who lead no more change nothing, whatever they believe."""
    ballots = [Ballot(etcds(), str(number), "a:1", 5) for number in range(CLIENTS)]
    won = ballots[0].stand(0)
    assert won
    former: Store = Locked(EtcdStore(etcds(), won.since))  # type: ignore[assignment]  # as above
    since = won.since

    def next_leads() -> None:
        nonlocal since
        time.sleep(0.02)
        ballots[0].resign(won.lease)
        after = ballots[1].stand(0)
        assert after
        since = after.since

    clients = Clients([former] * 2)
    clients.run(random.Random(seed), next_leads)
    leads: Store = Locked(EtcdStore(etcds(), since))  # type: ignore[assignment]  # as above
    later = Clients([leads, former])
    later.run(random.Random(seed + 100))
    clients.history += later.history
    check(clients)
