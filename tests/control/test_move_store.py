"""What was stored moves from SQLite to etcd and back, whole, while nobody uses it."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sllm import errors
from sllm.cli.app import app
from sllm.control.batches.etcd import EtcdBatches
from sllm.control.batches.store import BatchStore
from sllm.control.cluster.tiers import Tier
from sllm.control.config import ControlConfig, EtcdConfig
from sllm.control.election.ballot import Ballot
from sllm.control.etcd.client import Etcd
from sllm.control.move_store import Moved, move
from sllm.control.state.etcd import EtcdStore
from sllm.control.state.sqlite import SqliteStore
from sllm.control.state.store import Store
from sllm.control.types.batches import Batch, Ended, Item
from sllm.control.types.calls import UNASKED, AnswerFormat, Call
from sllm.control.types.pins import Pin, Place
from tests.control.shapes import call, deployment
from tests.etcd import EtcdServer

PIN = Pin(Place("d000", Tier.DRAM, "n1"), 5.0)
MANY = 120
"""More than one transaction takes."""


def fill(store: Store) -> None:
    for number in range(MANY):
        store.put(deployment(f"d{number:03}"), call(f"r{number}"), b"answer", 1.0)
    kept: AnswerFormat[Pin] = AnswerFormat(lambda _: b"", lambda _: PIN)
    store.put_pin(PIN, Call("", "", kept), 1.0)
    store.set_drained("n1", True, UNASKED, 1.0)


@pytest.fixture
def sqlite(tmp_path: Path) -> Path:
    with closing(SqliteStore(ControlConfig(tmp_path / "a").state_path)) as store:
        fill(store)
    return tmp_path / "a"


@pytest.fixture
def config(etcd_server: EtcdServer) -> EtcdConfig:
    return etcd_server.config()


@pytest.fixture
def etcd(config: EtcdConfig) -> Iterator[Etcd]:
    with closing(Etcd(config)) as etcd:
        yield etcd


def test_there_and_back_it_is_the_same(sqlite: Path, config: EtcdConfig, tmp_path: Path) -> None:
    assert move(sqlite, config) == Moved(MANY, 1, 1, 0)
    assert move(config, tmp_path / "b") == Moved(MANY, 1, 1, 0)
    with (
        closing(SqliteStore(ControlConfig(sqlite).state_path)) as before,
        closing(SqliteStore(ControlConfig(tmp_path / "b").state_path)) as after,
    ):
        assert after.contents() == before.contents()
        assert after.recall(call("r7")) == b"answer"


@pytest.mark.parametrize("filled", ["sqlite", "etcd"])
def test_what_is_there_already_stays(
    sqlite: Path, config: EtcdConfig, etcd: Etcd, tmp_path: Path, filled: str
) -> None:
    target: EtcdConfig | Path = config
    store: Store = EtcdStore(etcd)
    if filled == "sqlite":
        target = tmp_path / "b"
        store = SqliteStore(ControlConfig(target).state_path)
    store.put(deployment("mine"), call(""), b"", 1.0)
    store.close()
    with pytest.raises(errors.StartFailed, match="has deployments already"):
        move(sqlite, target)


def test_nobody_may_use_either(sqlite: Path, config: EtcdConfig, etcd: Etcd) -> None:
    used = closing(SqliteStore(ControlConfig(sqlite).state_path))
    with used, pytest.raises(errors.StartFailed, match="another control plane uses"):
        move(sqlite, config)
    leader = Ballot(etcd, "a", "a:1", 5).stand(above=0)
    assert leader
    with pytest.raises(errors.StartFailed, match="a control plane leads"):
        move(sqlite, config)
    Ballot(etcd, "a", "a:1", 5).resign(leader.lease)
    move(sqlite, config)
    assert Ballot(etcd, "a", "a:1", 5).look() is None, "nobody could lead"


def test_a_source_that_is_not_there_is_not_made(tmp_path: Path, config: EtcdConfig) -> None:
    with pytest.raises(errors.StartFailed, match="nothing was stored there"):
        move(tmp_path / "nowhere", config)
    assert not (tmp_path / "nowhere").exists()


def fill_batches(directory: Path) -> tuple[Batch, Batch]:
    """One amid its work, and one that has ended."""
    with closing(BatchStore(ControlConfig(directory).batches_path)) as batches:
        items = [Item("run", one, str(one), f"d{one % 2}", b"x" * one) for one in range(MANY)]
        batches.stage(items)
        running = Batch("b", "run", "f", MANY, 1.0, 2.0)
        batches.add(running)
        running = batches.record(running, [Ended(one, True, b"y") for one in items[:50]], 3.0)
        batches.stage([Item("past", 0, "0", "d0", b"")])
        over = Batch("past", "past", "f", 1, 0.5, 2.0)
        batches.add(over)
        over = batches.record(over, [Ended(Item("past", 0, "0", "d0", b""), False, b"z")], 3.0)
    return over, running


def test_batches_go_along(sqlite: Path, config: EtcdConfig, tmp_path: Path) -> None:
    over, running = fill_batches(sqlite)
    assert move(sqlite, config).batches == move(config, tmp_path / "b").batches == 2
    with closing(BatchStore(ControlConfig(tmp_path / "b").batches_path)) as batches:
        assert batches.batches() == [over, running]
        left = [batches.waiting("run", name, -1, MANY) for name in ("d0", "d1")]
        assert sorted(one.number for some in left for one in some) == list(range(50, MANY))
        assert left[0][0] == Item("run", 50, "50", "d0", b"x" * 50)
        assert [one.outcome for one in batches.results("run", 0, MANY)] == [b"y"] * 50
        assert [one.outcome for one in batches.results("past", 0, MANY)] == [b"z"]


def test_batches_that_are_there_already_stay(
    sqlite: Path, config: EtcdConfig, tmp_path: Path
) -> None:
    fill_batches(sqlite)
    fill_batches(tmp_path / "b")
    with pytest.raises(errors.StartFailed, match="there are batches already"):
        move(sqlite, tmp_path / "b")
    with closing(Etcd(config)) as etcd:
        EtcdStore(etcd)
        EtcdBatches(etcd, None, 1 << 20).add(Batch("b", "run", "f", 0, 1.0, 2.0))
    with pytest.raises(errors.StartFailed, match="there are batches already"):
        move(sqlite, config)


def test_what_was_moved_is_told(sqlite: Path, config: EtcdConfig) -> None:
    fill_batches(sqlite)
    target = f"etcd://{config.endpoints[0]}{config.prefix}"
    result = CliRunner().invoke(app, ["migrate-store", f"sqlite:{sqlite}", target])
    assert result.exit_code == 0, result.output
    assert f"{MANY} deployments, 1 pins, 1 drained nodes and 2 batches" in result.output
