"""Stores of several nodes, as processes that have chunks from one another over gRPC."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from sllm.checkpoint.format.manifest import Manifest
from sllm.checkpoint.format.manifest_file import read_manifest
from tests.checkpoint.checkpoints import (
    assert_same,
    flip_bit,
    import_model,
    random_weights,
    tensors_on_disk,
    write_model,
)
from tests.checkpoint.remote.web import WebServer
from tests.node.peers.nodes import StoreProcess, store_process

WEIGHTS = random_weights(layers=12)
PARTITION = "partition-00000.bin"


class Fleet:
    """A web server with one model in two forms, and nodes that can be started."""

    def __init__(self, directory: Path, web: WebServer, stack: ExitStack) -> None:
        self.web = web
        self._directory = directory
        self._stack = stack
        self.plain = f"{web.url}/plain"
        self.packed = f"{web.url}/packed"
        write_model(web.root / "plain", WEIGHTS)
        self.manifest: Manifest = import_model(web.root / "plain", web.root / "packed")
        self.nodes: list[StoreProcess] = []

    def start(self, count: int, *options: str) -> list[StoreProcess]:
        """More nodes."""
        for _ in range(count):
            name = f"n{len(self.nodes)}"
            node = store_process(self._directory / name, name, *options)
            self.nodes.append(self._stack.enter_context(node))
        return self.nodes[-count:]

    def holder(self, url: str, tier: str = "SSD") -> StoreProcess:
        """A node that holds the checkpoint of a source."""
        (node,) = self.start(1)
        node.promote(url, tier=tier)
        assert node.answer()["digest"] == self.manifest.digest
        return node

    @property
    def asked(self) -> int:
        """Bytes of weights that the web server was asked for, but for headers."""
        return sum(
            hit.size
            for hit in self.web.hits
            if hit.method == "GET"
            and (hit.name == PARTITION or (hit.name == "model.safetensors" and hit.start))
        )

    def check(self, answer: dict[str, Any]) -> None:
        """Makes sure that a promotion has left the model, byte by byte."""
        assert answer.get("digest") == self.manifest.digest, answer
        directory = Path(answer["directory"])
        assert_same(tensors_on_disk(read_manifest(directory), directory), WEIGHTS)
        assert sum(answer["bytes"].values()) == self.manifest.size_bytes

    def close(self) -> None:
        """Ends all that still run, each of which looks at its books."""
        for node in self.nodes:
            if node.process.poll() is None:
                node.close()


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    (tmp_path / "web").mkdir()
    with WebServer(tmp_path / "web") as web, ExitStack() as stack:
        fleet = Fleet(tmp_path, web, stack)
        yield fleet
        fleet.close()


def test_a_node_that_lacks_a_checkpoint_has_it_from_those_that_hold_it(fleet: Fleet) -> None:
    holders = [fleet.holder(fleet.plain, tier) for tier in ("SSD", "DRAM")]
    before = fleet.asked
    (taker,) = fleet.start(1)
    taker.promote(fleet.plain, holders, digest=fleet.manifest.digest, tier="DRAM")
    answer = taker.answer()
    fleet.check(answer)
    assert answer["bytes"] == {"FETCH": fleet.manifest.size_bytes}
    assert fleet.asked == before


@pytest.mark.parametrize("form", ["packed", "plain"])
def test_nodes_that_begin_at_once_have_each_chunk_from_the_source_once(
    fleet: Fleet, form: str
) -> None:
    """Also one that nobody has packed, of whose chunks nothing is known before."""
    nodes = fleet.start(3)
    source = getattr(fleet, form)
    for number, node in enumerate(nodes):
        node.promote(source, nodes[:number], fellows=True, tier=("SSD", "DRAM")[number % 2])
    answers = [node.answer() for node in nodes]
    for answer in answers:
        fleet.check(answer)
    imported = sum(answer["bytes"].get("IMPORT", 0) for answer in answers)
    assert imported < len(nodes) * fleet.manifest.size_bytes, "they have not swapped"
    assert form == "plain" or fleet.asked == imported


def test_what_nobody_can_check_is_had_from_the_source(fleet: Fleet) -> None:
    holder = fleet.holder(fleet.plain)
    (taker,) = fleet.start(1)
    taker.promote(fleet.plain, [holder], digest="0" * 32)
    answer = taker.answer()
    fleet.check(answer)
    assert answer["bytes"] == {"IMPORT": fleet.manifest.size_bytes}


def test_a_node_whose_chunks_are_of_another_size_has_them_from_the_source(fleet: Fleet) -> None:
    holder = fleet.holder(fleet.plain)
    (taker,) = fleet.start(1, "--chunk-bytes=16384")
    taker.promote(fleet.plain, [holder], digest=fleet.manifest.digest)
    answer = taker.answer()
    assert answer.get("bytes") == {"IMPORT": fleet.manifest.size_bytes}, answer


def _flip(path: Path) -> None:
    for offset in range(0, path.stat().st_size, 8192):
        flip_bit(path, offset + 100)


def _cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(8192)


@pytest.mark.parametrize("spoil", [_flip, _cut, Path.unlink], ids=["lies", "is cut", "is gone"])
def test_no_wrong_byte_is_taken_from_a_node_whose_copy(
    fleet: Fleet, spoil: Callable[[Path], None]
) -> None:
    bad, good = fleet.holder(fleet.packed), fleet.holder(fleet.packed)
    spoil(bad.directory / fleet.manifest.digest / PARTITION)
    (taker,) = fleet.start(1)
    taker.promote(fleet.packed, [bad, good], digest=fleet.manifest.digest)
    fleet.check(taker.answer())
    (alone,) = fleet.start(1)
    alone.promote(fleet.packed, [bad], digest=fleet.manifest.digest)
    fleet.check(alone.answer())


@pytest.mark.parametrize(
    ("how", "after"),
    [
        (signal.SIGKILL, 0.15),
        (signal.SIGSTOP, 0.15),
        *(
            pytest.param(how, after, marks=pytest.mark.nightly)
            for how in (signal.SIGKILL, signal.SIGSTOP)
            for after in (0.0, 0.05, 0.3, 0.5)
        ),
    ],
)
def test_a_giver_that_goes_is_done_without(fleet: Fleet, how: signal.Signals, after: float) -> None:
    going, staying = fleet.holder(fleet.packed), fleet.holder(fleet.packed)
    (taker,) = fleet.start(1)
    taker.promote(fleet.packed, [going, staying], digest=fleet.manifest.digest)
    time.sleep(after)
    going.process.send_signal(how)
    fleet.check(taker.answer())
    going.process.kill()
    going.process.wait(10)


def test_a_fellow_that_goes_leaves_its_part_to_the_others(fleet: Fleet) -> None:
    nodes = fleet.start(3)
    for number, node in enumerate(nodes):
        node.promote(fleet.packed, nodes[:number], fellows=True)
    time.sleep(0.2)
    nodes[1].process.kill()
    for node in (nodes[0], nodes[2]):
        fleet.check(node.answer())
    nodes[1].process.wait(10)


def test_where_no_other_node_is_there_the_source_is(fleet: Fleet) -> None:
    holder = fleet.holder(fleet.plain)
    holder.process.kill()
    holder.process.wait(10)
    (taker,) = fleet.start(1)
    taker.promote(fleet.plain, [holder], digest=fleet.manifest.digest)
    fleet.check(taker.answer())
