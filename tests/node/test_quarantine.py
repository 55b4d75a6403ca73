"""Copies on SSD that are not what they should be, before and during a load."""

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sllm.checkpoint import chunk_reader
from sllm.errors import CheckpointCorrupt
from sllm.node import read_queue
from sllm.node.records import Tier
from tests.checkpoint.checkpoints import flip_bit
from tests.node.store import Bench, gate_on


def truncate(path: Path) -> None:
    os.truncate(path, 10_000)


def put_a_directory_there(path: Path) -> None:
    """What root cannot read either."""
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [truncate, Path.unlink, put_a_directory_there])
@pytest.mark.parametrize("when", ["before", "at the start"])
async def test_a_copy_that_cannot_be_read_is_set_aside_and_replaced(
    bench: Bench, damage: Callable[[Path], None], when: str
) -> None:
    digest = await bench.leave(0, Tier.SSD)
    path = bench.directory / "tier" / digest / "partition-00000.bin"
    with gate_on("reads") as gate:
        if when == "before":
            damage(path)
        else:
            gate.when_held = lambda: damage(path)
        gate.open()
        lease = await bench.promote(0, Tier.DRAM)
    assert lease.digest == digest
    assert len(list((bench.directory / "tier").glob(".quarantined-*"))) == 1


@pytest.mark.parametrize("damage", [truncate, lambda path: flip_bit(path, 40_000)])
@pytest.mark.parametrize("pack", [True, False])
async def test_a_file_that_is_damaged_halfway_is_never_served(
    bench: Bench, damage: Callable[[Path], None], pack: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_ssd = await bench.store.promote(bench.model(0), None, Tier.SSD, pack=pack)
    path = on_ssd.checkpoint.directory / "partition-00000.bin"
    if not pack:
        path = Path(bench.model(0)) / "model.safetensors"
    on_ssd.release()
    turns = itertools.count()

    def read_chunk(*args: Any, **named: Any) -> float:
        if next(turns) == 2:
            damage(path)
        return chunk_reader.read_chunk(*args, **named)

    monkeypatch.setattr(read_queue, "read_chunk", read_chunk)
    if pack:
        await bench.promote(0, Tier.DRAM)
        return
    with pytest.raises(CheckpointCorrupt):
        await bench.store.promote(bench.model(0), None, Tier.DRAM)
    assert bench.pool.used_bytes == 0


async def test_what_was_set_aside_goes_when_room_is_needed(bench: Bench) -> None:
    digest = await bench.leave(0, Tier.SSD)
    flip_bit(bench.directory / "tier" / digest / "partition-00000.bin", 20_000)
    await bench.leave(0, Tier.DRAM)
    assert list((bench.directory / "tier").glob(".quarantined-*"))
    for seed in range(1, 8):
        await bench.leave(seed, Tier.SSD)
    assert not list((bench.directory / "tier").glob(".quarantined-*"))
    assert len(bench.on(Tier.SSD)) == 8


async def test_what_was_set_aside_goes_at_the_next_start(bench: Bench) -> None:
    digest = await bench.leave(0, Tier.SSD)
    flip_bit(bench.directory / "tier" / digest / "partition-00000.bin", 20_000)
    await bench.leave(0, Tier.DRAM)
    await bench.reopen()
    assert not list((bench.directory / "tier").glob(".quarantined-*"))
    assert bench.on(Tier.SSD) == {digest}
