"""Copies on SSD that are not what they should be, before and during a load."""

import asyncio
import errno
import itertools
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from sllm.checkpoint.files.direct_io import DirectFile
from sllm.checkpoint.format import manifest_file, plain_files
from sllm.checkpoint.format.manifest_file import MANIFEST_FILE
from sllm.checkpoint.format.room import Room
from sllm.errors import CheckpointCorrupt, CheckpointUnreadable
from sllm.node.store.lease import Lease
from sllm.node.tiers.types import Tier
from sllm.node.transfers.work import nothing
from tests.checkpoint.checkpoints import flip_bit
from tests.checkpoint.plans import CHUNK
from tests.node.stores import Bench, gate_on


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


class Nowhere:
    """A sink that wants nothing."""

    def landed(self, index: int, chunk: int, copied: Callable[[], None] = nothing) -> None:
        copied()

    async def settle(self) -> None:
        return None


async def test_a_copy_that_two_find_to_be_corrupt_is_set_aside_once(bench: Bench) -> None:
    """Whoever finds it out last does not take its successor for it."""
    lease = await bench.promote(0, Tier.SSD)
    flip_bit(bench.directory / "tier" / lease.digest / "partition-00000.bin", 40_000)
    passing, promoting = await asyncio.gather(
        bench.store.pass_through(lease, Nowhere()),
        bench.store.promote(bench.model(0), None, Tier.DRAM, pack=True),
        return_exceptions=True,
    )
    assert isinstance(passing, CheckpointCorrupt)
    assert isinstance(promoting, Lease)
    bench.store.check_integrity()
    assert bench.on(Tier.SSD) == {lease.digest}
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

    read_into = DirectFile.read_into

    def read_and_damage(file: DirectFile, memory: memoryview, offset: int, size: int) -> None:
        if next(turns) == 2:
            damage(path)
        read_into(file, memory, offset, size)

    monkeypatch.setattr(DirectFile, "read_into", read_and_damage)
    if pack:
        await bench.promote(0, Tier.DRAM)
        return
    with pytest.raises(CheckpointCorrupt):
        await bench.store.promote(bench.model(0), None, Tier.DRAM)
    assert bench.pool.used_bytes == 0


@contextmanager
def no_descriptors_left() -> Iterator[None]:
    """As long as the block lasts this process can open nothing."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    held: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (psutil.Process().num_fds() + 20, limits[1]))
    try:
        with suppress(OSError):
            while True:
                held.append(os.dup(0))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in held:
            os.close(fd)


@pytest.mark.parametrize("pack", [True, False])
async def test_a_shortage_of_descriptors_costs_no_copy(bench: Bench, pack: bool) -> None:
    on_ssd = await bench.store.promote(bench.model(0), None, Tier.SSD, pack=pack)
    with ExitStack() as shortage, gate_on("reads") as gate:
        gate.when_held = lambda: shortage.enter_context(no_descriptors_left())
        gate.open()
        with pytest.raises(CheckpointUnreadable, match="Too many open files"):
            await bench.store.promote(bench.model(0), None, Tier.DRAM, pack=pack)
        shortage.close()
    assert bench.on(Tier.SSD) == {on_ssd.digest}
    assert bench.pool.used_bytes == 0
    lease = await bench.store.promote(bench.model(0), None, Tier.DRAM, pack=pack)
    assert (lease.digest, lease.from_tier) == (on_ssd.digest, Tier.SSD)
    assert not list((bench.directory / "tier").glob(".quarantined-*"))


async def test_a_shortage_when_the_tier_is_opened_costs_no_copy(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = await bench.leave(0, Tier.SSD)
    await bench.close()
    read = plain_files.read_plain

    def fail(path: Path, *room: Room) -> bytes:
        if path.name == MANIFEST_FILE:
            raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))
        return read(path, *room)

    with monkeypatch.context() as patch:
        patch.setattr(manifest_file, "read_plain", fail)
        await bench.open()
    assert bench.on(Tier.SSD) == set()
    bench.store.check_integrity()
    await bench.reopen()
    assert bench.on(Tier.SSD) == {digest}


@pytest.mark.parametrize("times", [1, 2])
async def test_an_error_of_the_disk_that_passes_costs_no_copy(
    bench: Bench, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.leave(0, Tier.SSD)
    failures = iter(range(times))
    preadv = os.preadv

    def fail(fd: int, buffers: list[memoryview], offset: int) -> int:
        if offset == 2 * CHUNK and next(failures, None) is not None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return preadv(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", fail)
    await bench.leave(0, Tier.DRAM)
    set_aside = list((bench.directory / "tier").glob(".quarantined-*"))
    assert len(set_aside) == times - 1


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
