"""Disks that are full or read-only for real, when a node starts and while it runs."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from sllm.errors import CheckpointUnreadable, NoCapacity
from sllm.node.config import NodeConfig
from sllm.node.directory import kept_node_id, with_sockets
from sllm.node.tiers.types import Tier
from tests.disks import SmallDisk, small_disk
from tests.node.stores import MODEL_BYTES, Bench, gate_on, settle
from tests.support import assert_eventually


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """Where the bench has its SSD tier. There is room for the probe of the disk's speed."""
    with small_disk(tmp_path / "tier", 20 << 20) as disk:
        yield disk


@pytest.fixture
async def bench(tmp_path: Path, disk: SmallDisk) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    await bench.open()
    yield bench
    await bench.close()


def problem(bench: Bench) -> str:
    return bench.store.usage()[0].problem


async def test_a_store_opens_on_a_read_only_disk_and_serves_what_is_there(
    bench: Bench, disk: SmallDisk
) -> None:
    digest = await bench.leave(0, Tier.SSD)
    await bench.close()
    disk.make_read_only()
    await bench.open()
    assert "Read-only" in problem(bench)
    lease = await bench.promote(0, Tier.DRAM)
    assert (lease.digest, lease.from_tier) == (digest, Tier.SSD)
    lease.release()


async def test_what_is_new_comes_into_the_pool_on_a_read_only_disk(
    bench: Bench, disk: SmallDisk
) -> None:
    await bench.close()
    disk.make_read_only()
    await bench.open()
    new = await bench.leave(1, Tier.DRAM)
    in_place = await bench.store.promote(bench.model(2), None, Tier.DRAM)
    assert bench.on(Tier.DRAM) == {new, in_place.digest}
    assert bench.on(Tier.SSD) == set()
    with pytest.raises(NoCapacity, match="Read-only"):
        await bench.promote(3, Tier.SSD)
    in_place.release()
    await bench.close()
    disk.make_writable()
    await bench.open()
    assert await bench.leave(3, Tier.SSD) in bench.on(Tier.SSD)
    assert not problem(bench)


async def test_a_store_opens_where_no_directory_can_be_made(tmp_path: Path) -> None:
    with small_disk(tmp_path / "mounted", 1 << 20) as disk:
        disk.make_read_only()
        bench = Bench(disk.path)
        await bench.open()
        assert "Read-only" in problem(bench)
        lease = await bench.store.promote(_model(tmp_path), None, Tier.DRAM)
        lease.release()
        await bench.close()


def _model(directory: Path) -> str:
    return Bench(directory).model(0)


async def test_a_copy_that_turns_out_bad_on_a_disk_that_takes_nothing_is_not_served(
    bench: Bench, disk: SmallDisk
) -> None:
    digest = await bench.leave(0, Tier.SSD)
    path = bench.directory / "tier" / digest / "partition-00000.bin"
    path.write_bytes(bytes(path.stat().st_size))
    disk.freeze()
    await bench.leave(0, Tier.DRAM)  # compares every tensor
    assert (bench.on(Tier.SSD), bench.on(Tier.DRAM)) == (set(), {digest})
    disk.thaw()
    await bench.store.evict(digest, Tier.DRAM)
    assert await bench.leave(0, Tier.SSD) == digest
    assert await bench.leave(0, Tier.DRAM) == digest


async def test_a_disk_that_stops_taking_anything_keeps_its_books(
    bench: Bench, disk: SmallDisk
) -> None:
    await bench.reopen(ssd_models=2)
    held = [await bench.leave(seed, Tier.SSD) for seed in range(2)]
    disk.freeze()
    new = await bench.leave(2, Tier.DRAM)
    assert bench.on(Tier.DRAM) == {new}
    disk.thaw()
    for seed, digest in enumerate(held):
        assert await bench.leave(seed, Tier.DRAM) == digest


async def test_a_disk_that_is_full_is_used_again_when_it_has_room(
    bench: Bench, disk: SmallDisk
) -> None:
    disk.fill()
    await bench.leave(0, Tier.DRAM)
    assert "is full" in problem(bench)
    assert bench.on(Tier.SSD) == set()
    disk.empty()
    digest = await bench.leave(1, Tier.DRAM)
    assert bench.on(Tier.SSD) == {digest}
    assert not problem(bench)


async def test_a_directory_that_is_gone_is_told_and_new_models_come_into_the_pool(
    tmp_path: Path,
) -> None:
    bench = Bench(tmp_path)
    await bench.open()
    lease = await bench.promote(0, Tier.DRAM)
    tier, away = bench.directory / "tier", bench.directory / "away"
    tier.rename(away)
    with pytest.raises(CheckpointUnreadable, match="is gone, and with it the files"):
        await bench.store.inspect(bench.model(0), None)
    assert "is gone" in problem(bench)
    lease.release()
    found = await bench.store.inspect(bench.model(0), None)
    assert (found.directory / "config.json").exists()
    assert bench.directory not in found.directory.parents
    assert (await bench.store.promote(bench.model(0), None, Tier.DRAM, pack=True)).chunks
    new = await bench.store.promote(bench.model(1), None, Tier.DRAM, pack=True)
    assert new.digest in bench.on(Tier.DRAM)
    new.release()
    with pytest.raises(NoCapacity, match="is gone"):
        await bench.promote(2, Tier.SSD)
    away.rename(tier)
    await bench.leave(2, Tier.SSD)
    assert not problem(bench)
    await bench.close()


async def test_a_directory_that_is_gone_is_told_by_the_first_who_writes(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    await bench.open()
    await asyncio.to_thread(shutil.rmtree, bench.directory / "tier")
    with pytest.raises(NoCapacity, match="is gone"):
        await bench.promote(0, Tier.SSD)
    assert "is gone" in problem(bench)
    await bench.close()


async def test_a_store_opens_on_a_full_disk(bench: Bench, disk: SmallDisk) -> None:
    digest = await bench.leave(0, Tier.SSD)
    await bench.close()
    disk.fill()
    await bench.open()
    assert await bench.leave(0, Tier.DRAM) == digest
    await bench.leave(1, Tier.DRAM)
    assert bench.on(Tier.SSD) == {digest}


@pytest.mark.parametrize("ssd_models", [0.5, 1.5])
async def test_what_the_budget_has_no_room_for_is_in_the_pool_alone(
    tmp_path: Path, ssd_models: float
) -> None:
    bench = Bench(tmp_path)
    await bench.open(ssd_models)
    held = await bench.promote(0, Tier.SSD) if ssd_models > 1 else None
    digest = await bench.leave(1, Tier.DRAM)
    assert digest in bench.on(Tier.DRAM)
    assert digest not in bench.on(Tier.SSD)
    assert not problem(bench)
    assert bench.store.usage()[0].used_bytes <= ssd_models * MODEL_BYTES
    if held:
        held.release()
    await bench.close()


async def test_who_wants_it_in_the_pool_gets_it_though_it_was_begun_for_the_disk(
    bench: Bench, disk: SmallDisk
) -> None:
    disk.fill()
    with gate_on("imports") as gate:
        to_disk = asyncio.create_task(bench.promote(0, Tier.SSD))
        await assert_eventually(lambda: gate.begun)
        to_pool = asyncio.create_task(bench.promote(0, Tier.DRAM))
        await settle()
        gate.open()
        with pytest.raises(NoCapacity, match="is full"):
            await to_disk
        (await to_pool).release()


async def test_a_node_has_an_id_and_sockets_without_a_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "node", 1 << 20) as disk:
        disk.make_read_only()
        config = NodeConfig(control_address="", directory=disk.path)
        assert kept_node_id(disk.path)
        async with AsyncExitStack() as stack:
            sockets = with_sockets(config, stack).socket_dir
            (sockets / "a.sock").touch()
        assert not sockets.exists()
