import asyncio
import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from sllm.checkpoint.files.direct_io import DirectFile
from sllm.errors import (
    CheckpointCorrupt,
    InvalidArgument,
    InvalidSource,
    NoCapacity,
    ShuttingDown,
    SourceNotFound,
)
from sllm.node.tiers.types import Tier
from sllm.node.transfers.work import LoadPhase, Progress
from tests.checkpoint.checkpoints import flip_bit, write_model
from tests.node.stores import Bench, gate_on, settle
from tests.support import assert_eventually


async def test_a_caller_that_leaves_is_told_no_more_and_ends_nothing_of_others(
    bench: Bench,
) -> None:
    seen: list[Progress] = []
    with gate_on("imports") as gate:
        leaving = asyncio.create_task(bench.promote(0, Tier.DRAM, seen.append))
        staying = asyncio.create_task(bench.promote(0, Tier.DRAM))
        await assert_eventually(lambda: gate.begun)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        told = len(seen)
        gate.open()
        lease = await staying
        assert gate.begun == 1
    assert len(seen) == told
    lease.release()
    await bench.store.evict(lease.digest, Tier.SSD)


async def test_the_next_process_finds_what_was_imported(bench: Bench) -> None:
    digest = await bench.leave(0, Tier.SSD)
    await bench.reopen()
    lease = await bench.promote(0, Tier.DRAM)
    assert (lease.digest, lease.from_tier) == (digest, Tier.SSD)
    assert [step.phase for step in lease.steps] == [LoadPhase.READ]


async def test_a_source_that_is_gone_is_served_from_the_tiers(bench: Bench) -> None:
    digest = await bench.leave(0, Tier.SSD)
    (bench.directory / "model0").rename(bench.directory / "elsewhere")
    lease = await bench.store.promote(str(bench.directory / "model0"), None, Tier.DRAM, pack=True)
    assert lease.digest == digest
    with pytest.raises(SourceNotFound):
        await bench.store.promote(str(bench.directory / "model0"), "float16", Tier.DRAM)
    lease.release()


async def test_a_source_that_changed_is_imported_anew(bench: Bench) -> None:
    old = await bench.leave(0, Tier.SSD)
    write_model(bench.directory / "model0", seed=7)
    lease = await bench.store.promote(bench.model(0), None, Tier.SSD, pack=True)
    assert lease.digest != old
    sources = {copy.digest: copy.sources for copy in bench.store.copies()}
    assert sources == {old: (), lease.digest: ((bench.directory / "model0").as_uri(),)}


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    """A disk that takes nothing more, with this errno."""

    def refuse(file: DirectFile, memory: memoryview, offset: int) -> None:
        raise OSError(request.param, os.strerror(request.param))

    with monkeypatch.context() as patch:
        patch.setattr(DirectFile, "write_from", refuse)
        yield


def problem(bench: Bench) -> str:
    ssd, dram = bench.store.usage()
    assert not dram.problem
    return ssd.problem


@pytest.mark.parametrize("refusing", [errno.ENOSPC, errno.EROFS, errno.EIO], indirect=True)
async def test_what_the_disk_refuses_is_in_the_pool_alone(bench: Bench, refusing: None) -> None:
    first = await bench.promote(0, Tier.DRAM)
    second = await bench.promote(0, Tier.DRAM)
    assert first.digest == second.digest
    assert (first.directory / "config.json").is_file()
    assert {copy.tier for copy in bench.store.copies()} == {Tier.DRAM}
    assert "disk of" in problem(bench)
    assert bench.store.usage()[0].used_bytes == 0
    assert {path.name for path in (bench.directory / "tier").iterdir()} == {".lock"}
    with pytest.raises(NoCapacity, match="disk of"):
        await bench.promote(1, Tier.SSD)
    first.release()
    second.release()
    await bench.store.evict(first.digest, Tier.DRAM)
    bench.store.check_integrity()
    assert bench.store.copies() == ()


async def test_when_the_disk_has_room_again_it_is_used(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: DirectFile, memory: memoryview, offset: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(DirectFile, "write_from", full)
        digest = await bench.leave(0, Tier.DRAM)
        assert "is full" in problem(bench)
    await bench.leave(1, Tier.DRAM)
    assert not problem(bench)
    assert digest not in bench.on(Tier.SSD)
    assert await bench.leave(0, Tier.SSD) == digest
    assert digest in bench.on(Tier.SSD)
    assert len(bench.on(Tier.DRAM)) == 2


async def test_callers_of_both_tiers_get_what_can_be_had(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: DirectFile, memory: memoryview, offset: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(DirectFile, "write_from", full)
    with gate_on("imports") as gate:
        to_pool = asyncio.create_task(bench.promote(0, Tier.DRAM))
        await assert_eventually(lambda: gate.begun)
        to_disk = asyncio.create_task(bench.promote(0, Tier.SSD))
        await settle()
        gate.open()
        lease = await to_pool
        with pytest.raises(NoCapacity, match="is full"):
            await to_disk
    lease.release()
    bench.store.check_integrity()
    assert not any(copy.leased for copy in bench.store.copies())


async def test_a_corrupt_copy_is_replaced_from_its_source(bench: Bench) -> None:
    digest = await bench.leave(0, Tier.SSD)
    flip_bit(bench.directory / "tier" / digest / "partition-00000.bin", 20_000)
    leases = await asyncio.gather(*(bench.promote(0, Tier.DRAM) for _ in range(3)))
    for lease in leases:
        assert [step.phase for step in lease.steps] == [LoadPhase.IMPORT]
        lease.release()
    assert bench.on(Tier.DRAM) == {digest}
    bench.store.check_integrity()


async def test_a_corrupt_copy_without_its_source_is_an_error_and_removed(bench: Bench) -> None:
    digest = await bench.leave(0, Tier.SSD)
    path = bench.directory / "tier" / digest / "partition-00000.bin"
    flip_bit(path, 20_000)
    (bench.directory / "model0").rename(bench.directory / "elsewhere")
    with pytest.raises(CheckpointCorrupt) as caught:
        await bench.store.promote(str(bench.directory / "model0"), None, Tier.DRAM, pack=True)
    assert caught.value.metadata == {"file": str(path), "offset": "16384"}
    assert bench.store.copies() == ()
    assert bench.pool.used_bytes == 0
    bench.store.check_integrity()


async def test_a_corrupt_source_is_an_error_and_leaves_nothing(bench: Bench) -> None:
    weights = Path(bench.model(0)) / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1)
    with pytest.raises(CheckpointCorrupt, match="model\\.safetensors"):
        await bench.promote(0, Tier.DRAM)
    assert bench.store.copies() == ()
    bench.store.check_integrity()
    write_model(bench.directory / "model0")
    await bench.promote(0, Tier.DRAM)


async def test_what_makes_no_sense_is_refused(bench: Bench) -> None:
    with pytest.raises(InvalidSource):
        await bench.store.promote("ftp://host/model", None, Tier.SSD, pack=True)
    with pytest.raises(SourceNotFound):
        await bench.store.promote(str(bench.directory / "none"), None, Tier.SSD, pack=True)
    with pytest.raises(InvalidArgument, match="int4"):
        await bench.store.promote(bench.model(0), "int4", Tier.SSD)
    with pytest.raises(InvalidArgument, match="DEVICE"):
        await bench.store.promote(bench.model(0), None, Tier.DEVICE, pack=True)


@pytest.mark.parametrize("kind", ["imports", "reads"])
async def test_closing_ends_what_is_under_way(tmp_path: Path, kind: str) -> None:
    bench = Bench(tmp_path)
    await bench.open()
    if kind == "reads":
        await bench.leave(0, Tier.SSD)
    with gate_on(kind) as gate:
        caller = asyncio.create_task(bench.promote(0, Tier.DRAM))
        await assert_eventually(lambda: gate.begun)
        closing = asyncio.create_task(bench.close())
        await settle()
        gate.open()
        with pytest.raises(ShuttingDown):
            await caller
        await closing
    with pytest.raises(ShuttingDown):
        await bench.store.promote(bench.model(0), None, Tier.SSD, pack=True)
    assert not list((tmp_path / "tier").glob(".incoming-*"))


async def test_closing_leaves_neither_descriptors_nor_threads(tmp_path: Path) -> None:
    async def live() -> int:
        bench = Bench(tmp_path)
        await bench.open()
        await bench.leave(0, Tier.SSD)
        await bench.leave(0, Tier.DRAM)
        await bench.close()
        return psutil.Process().num_fds()

    others = set(threading.enumerate())
    before = await live()
    for _ in range(3):
        after = await live()
    assert after <= before
    # The event loop's own threads for blocking calls stay, and grow in number as they are used.
    named = {thread.name.rpartition("_")[0] for thread in set(threading.enumerate()) - others}
    assert not named & {"chunk-read", "chunk-write", "checkpoint-move"}


def test_the_agents_side_needs_no_torch() -> None:
    script = (
        "import sys, sllm.node.store.tier_store as _; heavy = {'torch', 'transformers'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("kind", ["imports", "reads"])
async def test_a_load_that_is_given_up_frees_its_room_and_can_begin_anew(
    bench: Bench, kind: str
) -> None:
    if kind == "reads":
        await bench.leave(0, Tier.SSD)
    with gate_on(kind) as gate:
        given_up = asyncio.create_task(bench.promote(0, Tier.DRAM))
        await assert_eventually(lambda: gate.begun)
        assert bench.pool.used_bytes > 0
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        await settle()
        anew = asyncio.create_task(bench.promote(0, Tier.DRAM))
        await settle()
        gate.open()
        lease = await anew
        assert gate.begun == 2
    lease.release()
    assert not any(copy.leased for copy in bench.store.copies())


@pytest.mark.parametrize("kind", ["imports", "reads"])
async def test_a_load_that_all_have_given_up_ends(bench: Bench, kind: str) -> None:
    if kind == "reads":
        await bench.leave(0, Tier.SSD)
    before = bench.on(Tier.SSD)
    with gate_on(kind) as gate:
        both = [asyncio.create_task(bench.promote(0, Tier.DRAM)) for _ in range(2)]
        await assert_eventually(lambda: gate.begun)
        for one in both:
            one.cancel()
        await asyncio.gather(*both, return_exceptions=True)
        gate.open()
        await assert_eventually(lambda: not bench.pool.used_bytes)
    assert bench.on(Tier.DRAM) == set()
    assert bench.on(Tier.SSD) == before
    assert not any(copy.leased for copy in bench.store.copies())
    bench.store.check_integrity()


@pytest.mark.parametrize("kind", ["imports", "reads"])
async def test_a_load_that_one_has_given_up_goes_on_for_the_others(bench: Bench, kind: str) -> None:
    if kind == "reads":
        await bench.leave(0, Tier.SSD)
    with gate_on(kind) as gate:
        leaving = asyncio.create_task(bench.promote(0, Tier.DRAM))
        joined: list[object] = []
        staying = asyncio.create_task(bench.promote(0, Tier.DRAM, joined.append))
        await assert_eventually(lambda: gate.begun and joined)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        gate.open()
        lease = await staying
        assert gate.begun == 1
    lease.release()
    assert not any(copy.leased for copy in bench.store.copies())
