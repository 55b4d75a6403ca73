"""What becomes of the store's file under a control plane is noticed, and what it says is typed."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sllm import errors
from sllm.control.state.sqlite import SqliteStore
from sllm.control.types.calls import AnswerFormat, Call
from tests.control.shapes import deployment
from tests.disks import small_disk

AS_IT_IS: AnswerFormat[bytes] = AnswerFormat(bytes, bytes)
CALL = Call("r", "content", AS_IT_IS)


def put(store: SqliteStore, name: str = "two") -> None:
    store.put(deployment(name), Call("", "f", AS_IT_IS), b"answer", 1.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "state.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(path)
    put(store, "one")
    yield store
    store.close()


def _delete(path: Path) -> None:
    for one in path.parent.glob("state.db*"):
        one.unlink()


def _replace(path: Path) -> None:
    copy = path.with_suffix(".copy")
    shutil.copy(path, copy)
    copy.replace(path)


LOSSES: dict[str, Callable[[Path], object]] = {
    "all files deleted": _delete,
    "the file deleted": Path.unlink,
    "the log deleted": lambda path: path.with_name("state.db-wal").unlink(),
    "the directory deleted": lambda path: shutil.rmtree(path.parent),
    "the directory moved": lambda path: path.parent.rename(path.parent.with_name("away")),
    "replaced by a copy": _replace,
    "emptied": lambda path: os.truncate(path, 0),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_nothing_is_stored_where_nobody_finds_it(path: Path, store: SqliteStore, loss: str) -> None:
    LOSSES[loss](path)
    uses: list[Callable[[], object]] = [
        store.check,
        store.deployments,
        lambda: put(store),
        lambda: store.recall(CALL),
    ]
    for use in uses:
        with pytest.raises(errors.StateUnavailable, match="was taken away") as caught:
            use()
        assert caught.value.retry_after is None, "waiting does not help"


def test_what_is_put_back_is_used_again(path: Path, store: SqliteStore) -> None:
    path.parent.rename(path.parent.with_name("away"))
    with pytest.raises(errors.StateUnavailable):
        put(store)
    path.parent.with_name("away").rename(path.parent)
    put(store)
    assert [one.name for one in store.deployments()] == ["one", "two"]


def test_a_full_disk_is_told_and_passes(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        store = SqliteStore(disk.path / "state.db")
        put(store, "one")
        disk.fill()
        stored = _until_refused(store)
        assert [one.name for one in store.deployments()] == stored
        disk.empty()
        put(store, "zero")
        assert len(store.deployments()) == len(stored) + 1
        store.close()


def _until_refused(store: SqliteStore) -> list[str]:
    """Puts deployments until there is no room; returns which are there, by name."""
    stored = ["one"]
    while len(stored) < 10_000:
        name = f"p{len(stored):04}"
        try:
            put(store, name)
        except errors.StateUnavailable:
            return stored
        stored.append(name)
    pytest.fail("the disk is never full")


def test_a_directory_is_for_one_control_plane(path: Path) -> None:
    store = SqliteStore(path)
    with pytest.raises(errors.StartFailed, match="another control plane uses"):
        SqliteStore(path)
    store.close()
    SqliteStore(path).close()
