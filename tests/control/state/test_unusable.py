"""A state file that cannot be used: callers are told to try again, and nothing has changed."""

import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from serverlessllm.v1 import cluster_service_pb2 as cluster_pb
from serverlessllm.v1 import types_pb2 as pb

from sllm import errors
from sllm.control.state.sqlite import SqliteStore
from tests.control.clusters import Caller, Cluster
from tests.control.fake_node import FakeNode
from tests.control.shapes import call, deployment

ONE = deployment("one")
CALL = call("")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.execute("ROLLBACK")


@contextmanager
def full(store: SqliteStore) -> Iterator[None]:
    """SQLite itself refuses to make the file larger, as it does when the disk has no room."""
    (pages,) = store._db.execute("PRAGMA page_count").fetchone()
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    yield
    store._db.execute("PRAGMA max_page_count = 1000000")


def _put(store: SqliteStore) -> None:
    large = deployment("large")
    spec = replace(large.spec, source="file:///" + "x" * 100_000)
    store.put(replace(large, spec=spec), CALL, b"answer", 1.0)


def test_a_locked_file_is_told_and_works_again_later(path: Path) -> None:
    store = SqliteStore(path)
    store.put(ONE, CALL, b"answer", 1.0)
    with locked(path):
        with pytest.raises(errors.StateUnavailable, match="locked") as caught:
            _put(store)
        assert caught.value.retry_after == 1.0
        assert store.deployments() == [ONE]
    _put(store)
    assert [one.name for one in store.deployments()] == ["large", "one"]
    store.close()


def test_a_full_disk_is_told_and_leaves_no_transaction_open(path: Path) -> None:
    store = SqliteStore(path)
    store.put(ONE, CALL, b"answer", 1.0)
    with full(store):
        for _ in range(2):
            with pytest.raises(errors.StateUnavailable, match="full"):
                _put(store)
        assert store.deployments() == [ONE]
    _put(store)
    assert [one.name for one in store.deployments()] == ["large", "one"]
    store.close()


ROWS = {
    "what is no JSON": "UPDATE deployments SET spec = '{'",
    "a field that is missing": "UPDATE deployments SET spec = '{}'",
    "a field that is too much": "UPDATE deployments SET model = '{\"color\": 1}'",
    "a list": "UPDATE deployments SET spec = '[]'",
}


@pytest.mark.parametrize("what", ROWS)
def test_an_unreadable_row_is_named_at_the_start(path: Path, what: str) -> None:
    store = SqliteStore(path)
    store.put(ONE, CALL, b"answer", 1.0)
    store._db.execute(ROWS[what])
    with pytest.raises(errors.StartFailed, match="row of deployments"):
        store.deployments()
    store.close()


def test_an_unknown_tier_of_a_pin_is_named_at_the_start(path: Path) -> None:
    store = SqliteStore(path)
    store._db.execute("INSERT INTO pins VALUES ('one', 99, 'n1', NULL)")
    with pytest.raises(errors.StartFailed, match="row of pins"):
        store.pins()
    store.close()


Ask = Callable[[Caller], Awaitable[object]]
PLACE: Any = {"deployment": "tiny", "tier": pb.TIER_DRAM, "node_id": "n1", "request_id": "r"}
CALLS: dict[str, Ask] = {
    "Deploy": lambda caller: caller.deploy("new", request_id="r"),
    "a changed Deploy": lambda caller: caller.deploy(keep_alive=1.0),
    "DeleteDeployment": lambda caller: caller.delete("tiny"),
    "Pin": lambda caller: caller.stream("Pin", cluster_pb.PinRequest(**PLACE)),
    "Prefetch": lambda caller: caller.stream("Prefetch", cluster_pb.PrefetchRequest(**PLACE)),
    "DrainNode": lambda caller: caller.stream(
        "DrainNode", cluster_pb.DrainNodeRequest(node_id="n1")
    ),
    "UndrainNode": lambda caller: caller.ask(
        "UndrainNode", cluster_pb.UndrainNodeRequest(node_id="n1")
    ),
}


@pytest.mark.parametrize("what", CALLS)
async def test_callers_are_told_to_try_again(
    cluster: Cluster, node: FakeNode, tmp_path: Path, what: str
) -> None:
    await cluster.caller.deploy()
    with locked(tmp_path / "state.db"):
        with pytest.raises(errors.StateUnavailable) as caught:
            await CALLS[what](cluster.caller)
        assert caught.value.retry_after == 1.0
        assert not (await cluster.caller.node()).draining
        assert (await cluster.caller.deployment("tiny")).scaling.keep_alive.seconds == 60
        assert (await cluster.caller.complete()).events
    await CALLS[what](cluster.caller)
