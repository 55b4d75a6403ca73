import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import copytree, move
from typing import Any

import pytest

from sllm.checkpoint.files.direct_io import DirectFile
from sllm.checkpoint.format.manifest import corrupt
from sllm.errors import (
    CheckpointCorrupt,
    CheckpointLeased,
    CheckpointNotFound,
    DeviceFailed,
    ModelTooLarge,
    NoCapacity,
)
from sllm.node.device.copy_thread import COPIES_IN_FLIGHT
from sllm.node.device.interface import Placed
from sllm.node.device.memory import DeviceMemory
from sllm.node.store.tier_store import TierStore
from sllm.node.tiers.types import Tier
from sllm.node.transfers.work import LoadPhase, Progress
from tests.checkpoint.checkpoints import flip_bit, write_model
from tests.checkpoint.plans import CHUNK
from tests.node.device.fake_cuda import UNKNOWN
from tests.node.device.machine import ALL_KV_BYTES, MODEL_BYTES, Machine
from tests.node.stores import MODEL_CHUNKS, settle
from tests.support import assert_eventually


@contextmanager
def held_from(offset: int) -> Iterator[threading.Event]:
    """Holds reads of what lies at `offset` of a file or beyond, until the event is set."""
    go, read_into = threading.Event(), DirectFile.read_into

    def read(file: DirectFile, memory: memoryview, start: int, size: int) -> Any:
        if start >= offset:
            assert go.wait(20), "nobody let the read go on"
        return read_into(file, memory, start, size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DirectFile, "read_into", read)
        try:
            yield go
        finally:
            go.set()


async def begin(machine: Machine, seed: int) -> asyncio.Task[Placed]:
    """Has a model brought up beside the test."""
    seat = await machine.seat(seed)

    async def bring_up() -> Placed:
        return await seat.bring_up(machine.wish(seed), lambda _: None)

    return asyncio.create_task(bring_up())


async def on_ssd(machine: Machine, seed: int) -> str:
    return await machine.bench.leave(seed, Tier.SSD)


@pytest.mark.parametrize("pack", [True, False], ids=["packed", "in place"])
async def test_what_was_never_seen_gets_there_whole(machine: Machine, pack: bool) -> None:
    placed = await machine.bring_up(0, pack=pack)
    assert machine.on_device == {placed.manifest.digest}
    assert [step.phase for step in placed.steps][-1] is LoadPhase.COPY


async def test_the_highest_tier_that_held_it_is_told(machine: Machine) -> None:
    await on_ssd(machine, 0)
    first = await machine.bring_up(0)
    assert (first.from_tier, first.steps[0].phase) == (Tier.SSD, LoadPhase.READ)
    again = await machine.bring_up(0)
    assert (again.from_tier, tuple(again.steps)) == (Tier.DEVICE, ())
    await machine.bench.leave(1, Tier.DRAM)
    other = await machine.bring_up(1)
    assert [step.phase for step in other.steps] == [LoadPhase.COPY]


async def test_chunks_go_up_while_later_ones_are_read(machine: Machine) -> None:
    await on_ssd(machine, 0)
    with held_from(3 * CHUNK) as go:
        task = await begin(machine, 0)
        await assert_eventually(lambda: machine.cuda.copied == [CHUNK] * 3)
        assert not task.done()
        go.set()
        machine.check(await task, 0)
    assert len(machine.cuda.copied) == MODEL_CHUNKS, "a chunk was copied twice"


async def test_what_is_read_for_the_device_stays_in_the_pool(machine: Machine) -> None:
    digest = await on_ssd(machine, 0)
    await machine.bring_up(0)
    assert digest in machine.bench.on(Tier.DRAM)


async def test_few_chunks_are_in_the_stream_at_once(machine: Machine) -> None:
    await machine.bench.leave(0, Tier.DRAM)
    await machine.bench.leave(1, Tier.DRAM)
    tasks = [await begin(machine, 0), await begin(machine, 1)]
    await asyncio.gather(*tasks)
    assert 1 < machine.cuda.most_in_stream <= COPIES_IN_FLIGHT


async def test_a_checkpoint_larger_than_the_pool_passes_through_it(machine: Machine) -> None:
    await machine.reopen(pool_models=0.5)
    digest = await on_ssd(machine, 0)
    placed = await machine.bring_up(0)
    assert placed.manifest.digest == digest
    assert machine.bench.pool.used_bytes == 0
    assert [step.phase for step in placed.steps] == [LoadPhase.READ, LoadPhase.COPY]


async def test_one_that_was_never_seen_and_is_larger_than_the_pool_does_too(
    machine: Machine,
) -> None:
    await machine.reopen(pool_models=0.5)
    await machine.bring_up(0)
    assert machine.bench.pool.used_bytes == 0


async def test_a_chunk_is_not_read_into_before_it_was_copied(machine: Machine) -> None:
    await machine.reopen(pool_models=0.34)  # two chunks
    await on_ssd(machine, 0)
    machine.cuda.gate.clear()
    with held_from(2 * CHUNK) as go:
        task = await begin(machine, 0)
        await assert_eventually(lambda: machine.cuda.most_in_stream)
        go.set()
        await settle()
        machine.cuda.gate.set()
        machine.check(await task, 0)


async def test_two_who_want_the_same_load_it_once(machine: Machine) -> None:
    await on_ssd(machine, 0)
    machine.cuda.gate.clear()
    tasks = [await begin(machine, 0), await begin(machine, 0)]
    await assert_eventually(lambda: machine.cuda.most_in_stream)
    machine.cuda.gate.set()
    one, other = await asyncio.gather(*tasks)
    assert one.place == other.place
    assert len(machine.cuda.copied) == MODEL_CHUNKS


@pytest.mark.parametrize("pool_models", [8, 0.5], ids=["whole", "passing through"])
async def test_a_load_that_nobody_waits_for_leaves_nothing(
    machine: Machine, pool_models: float
) -> None:
    await machine.reopen(pool_models=pool_models)
    await on_ssd(machine, 0)
    with held_from(3 * CHUNK) as go:
        task = await begin(machine, 0)
        await assert_eventually(lambda: len(machine.cuda.copied) >= 2)
        task.cancel()
        await asyncio.wait([task])
        await settle()
        go.set()
    await assert_eventually(lambda: not machine.cuda.allocations)
    await assert_eventually(lambda: not any(one.leased for one in machine.bench.store.copies()))
    machine.devices.check_integrity()
    machine.check(await machine.bring_up(0), 0)


@pytest.mark.parametrize(
    ("tier", "pool_models"),
    [(Tier.SSD, 8), (Tier.DRAM, 8), (Tier.SSD, 0.5)],
    ids=["read", "in the pool", "passing through"],
)
async def test_a_load_that_ends_while_it_copies_leaves_nothing(
    machine: Machine, tier: Tier, pool_models: float
) -> None:
    await machine.reopen(pool_models=pool_models)
    await machine.bench.leave(0, tier)
    machine.cuda.gate.clear()
    task = await begin(machine, 0)
    await assert_eventually(lambda: machine.cuda.most_in_stream)
    task.cancel()
    await asyncio.wait([task])
    await settle()
    machine.cuda.gate.set()
    await assert_eventually(lambda: not machine.cuda.allocations)
    await assert_eventually(lambda: not any(one.leased for one in machine.bench.store.copies()))
    machine.check(await machine.bring_up(0), 0)


async def test_idle_copies_make_room_below_too(machine: Machine) -> None:
    await machine.reopen(device_models=8, pool_models=1.5, ssd_models=2.5)
    for seed in range(5):
        placed = await machine.bring_up(seed)
        placed.release()
        await machine.free_seats()
    machine.check(await machine.bring_up(4), 4)


async def test_an_idle_copy_holds_nothing_below_and_goes_with_what_is_there(
    machine: Machine,
) -> None:
    placed = await machine.bring_up(0)
    digest = placed.manifest.digest
    with pytest.raises(CheckpointLeased):
        await machine.bench.store.evict(digest, Tier.SSD)
    placed.release()
    assert not any(copy.leased for copy in machine.bench.store.copies())
    await machine.bench.store.evict(digest, Tier.SSD)
    await assert_eventually(lambda: not machine.cuda.allocations)
    assert not machine.on_device
    machine.check(await machine.bring_up(0), 0)


async def test_one_that_is_used_again_stays_though_its_room_below_is_wanted(
    machine: Machine,
) -> None:
    (await machine.bring_up(0)).release()
    again = await machine.bring_up(0)
    with pytest.raises(CheckpointLeased):
        await machine.bench.store.evict(again.manifest.digest, Tier.SSD)
    assert machine.on_device == {again.manifest.digest}


async def test_the_same_content_from_another_source_is_not_loaded_again(machine: Machine) -> None:
    first = await machine.bring_up(0)
    copytree(machine.bench.model(0), machine.bench.directory / "model7")
    second = await (await machine.seat(7)).bring_up(machine.wish(7), lambda _: None)
    assert second.place == first.place
    assert machine.cuda.used_bytes() == MODEL_BYTES


async def test_what_is_quick_to_bring_back_goes_first(machine: Machine) -> None:
    """Both have been used as often, and lately the one that goes."""
    await machine.reopen(device_models=2.5)
    machine.bench.store.speeds.ssd_to_dram.observe(1 << 40, 0.0, 1e6)
    on_ssd_alone, in_pool = await machine.bring_up(0), await machine.bring_up(1)
    for placed in (on_ssd_alone, in_pool):
        placed.release()
    await machine.bench.store.evict(on_ssd_alone.manifest.digest, Tier.DRAM)
    third = await machine.bring_up(2)
    assert machine.on_device == {on_ssd_alone.manifest.digest, third.manifest.digest}


async def test_room_that_others_have_taken_comes_from_idle_copies(machine: Machine) -> None:
    placed = await machine.bring_up(0)
    placed.release()
    machine.cuda.taken_by_others[0] = machine.cuda.total_bytes - MODEL_BYTES
    second = await machine.bring_up(1)
    assert machine.on_device == {second.manifest.digest}


async def test_what_changes_while_it_is_loaded_is_not_mixed_up(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    allocate = DeviceMemory.allocate

    async def replaced(memory: DeviceMemory, size: int) -> Any:
        write_model(Path(machine.bench.model(0)), seed=1)
        return await allocate(memory, size)

    monkeypatch.setattr(DeviceMemory, "allocate", replaced)
    seat = await machine.seat(0)
    with pytest.raises(CheckpointCorrupt, match="was changed"):
        await seat.bring_up(machine.wish(0, pack=False), lambda _: None)
    assert not machine.on_device


async def test_a_load_goes_on_for_whoever_still_waits(machine: Machine) -> None:
    await on_ssd(machine, 0)
    machine.cuda.gate.clear()
    leaving, staying = await begin(machine, 0), await begin(machine, 0)
    await assert_eventually(lambda: machine.cuda.most_in_stream)
    leaving.cancel()
    await asyncio.wait([leaving])
    machine.cuda.gate.set()
    machine.check(await staying, 0)


async def test_what_is_idle_makes_room(machine: Machine) -> None:
    await machine.reopen(device_models=2)
    first, second = await machine.bring_up(0), await machine.bring_up(1)
    first.release()
    third = await machine.bring_up(2)
    assert machine.on_device == {second.manifest.digest, third.manifest.digest}
    assert machine.cuda.used_bytes() == 2 * MODEL_BYTES


async def test_what_is_in_use_stays(machine: Machine) -> None:
    await machine.reopen(device_models=2)
    await machine.bring_up(0)
    placed = await machine.bring_up(1)
    with pytest.raises(NoCapacity, match=r"Device 0: .* are left"):
        await machine.bring_up(2)
    with pytest.raises(CheckpointLeased, match="in use"):
        await machine.devices.evict(placed.manifest.digest)
    machine.devices.check_integrity()


async def test_eviction_gives_the_memory_back_as_measured(machine: Machine) -> None:
    before = machine.devices.infos()[0].free_bytes
    placed = await machine.bring_up(0)
    assert machine.devices.infos()[0].free_bytes == before - MODEL_BYTES
    placed.release()
    await machine.devices.evict(placed.manifest.digest)
    assert machine.devices.infos()[0].free_bytes == before
    with pytest.raises(CheckpointNotFound):
        await machine.devices.evict(placed.manifest.digest)


async def test_memory_that_others_have_taken_is_told_with_the_numbers(machine: Machine) -> None:
    machine.cuda.taken_by_others[0] = machine.cuda.total_bytes - MODEL_BYTES // 2
    with pytest.raises(NoCapacity, match=rf"{MODEL_BYTES} bytes .* only {MODEL_BYTES // 2} are"):
        await machine.bring_up(0)
    machine.devices.check_integrity()
    machine.cuda.taken_by_others[0] = 0
    await machine.bring_up(0)


async def test_a_model_too_large_for_every_device_is_refused(machine: Machine) -> None:
    with pytest.raises(
        ModelTooLarge, match=rf"{1 << 40} bytes.*has {4 * MODEL_BYTES + ALL_KV_BYTES} for"
    ):
        machine.devices.check_fits(1 << 40)


def damage(machine: Machine, digest: str) -> None:
    flip_bit(machine.bench.directory / "tier" / digest / "partition-00000.bin", 3 * CHUNK + 5)


@pytest.mark.parametrize("pool_models", [8, 0.5], ids=["whole", "passing through"])
async def test_a_corrupt_copy_is_replaced_on_the_way(machine: Machine, pool_models: float) -> None:
    await machine.reopen(pool_models=pool_models)
    damage(machine, digest := await on_ssd(machine, 0))
    placed = await machine.bring_up(0)  # looks at the bytes
    assert digest in machine.bench.on(Tier.SSD), "imported anew"
    placed.release()
    assert not any(copy.leased for copy in machine.bench.store.copies())


async def test_corrupt_bytes_of_which_the_source_is_gone_are_told(machine: Machine) -> None:
    await machine.reopen(pool_models=0.5)
    damage(machine, await on_ssd(machine, 0))
    seat, wish = await machine.seat(0), machine.wish(0)
    move(machine.bench.model(0), machine.bench.directory / "elsewhere")
    with pytest.raises(CheckpointCorrupt, match=rf"at offset {3 * CHUNK}"):
        await seat.bring_up(wish, lambda _: None)
    assert not machine.cuda.allocations


async def test_a_copy_that_others_find_to_be_corrupt_meanwhile_is_replaced(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await machine.reopen(pool_models=0.5)
    digest = await on_ssd(machine, 0)
    store = machine.bench.store
    passing: list[str] = []

    async def pass_through(self: TierStore, *arguments: Any, **options: Any) -> Any:
        if not passing:
            found = corrupt(Path(digest), "was found to be so by others")
            self._ssd.quarantine(self._ssd.copies[digest], found)
        passing.append(digest)
        return await original(self, *arguments, **options)

    original = TierStore.pass_through
    monkeypatch.setattr(TierStore, "pass_through", pass_through)
    machine.check(await machine.bring_up(0), 0)
    assert len(passing) == 2
    assert store.holds(digest)


async def test_a_device_that_fails_says_so_and_holds_nothing(machine: Machine) -> None:
    await on_ssd(machine, 0)
    machine.cuda.fails["cuMemcpyHtoDAsync_v2"] = UNKNOWN
    with pytest.raises(DeviceFailed, match="cuMemcpyHtoDAsync_v2"):
        await machine.bring_up(0)
    assert not machine.cuda.allocations
    machine.cuda.fails.clear()
    await machine.bring_up(0)


async def test_memory_that_cannot_be_exported_is_freed(machine: Machine) -> None:
    machine.cuda.fails["cuIpcGetMemHandle"] = UNKNOWN
    with pytest.raises(DeviceFailed, match="cuIpcGetMemHandle"):
        await machine.bring_up(0)
    assert not machine.cuda.allocations


async def test_cuda_is_never_called_in_the_event_loop(machine: Machine) -> None:
    machine.cuda.threads.clear()  # the driver was made in the test
    placed = await machine.bring_up(0)
    placed.release()
    await machine.devices.evict(placed.manifest.digest)
    assert machine.cuda.threads == {"cuda-0"}


async def test_progress_is_told_to_the_last_byte(machine: Machine) -> None:
    await on_ssd(machine, 0)
    seen: list[Progress] = []
    placed = await (await machine.seat(0)).bring_up(machine.wish(0), seen.append)
    copying = [one for one in seen if one.phase is LoadPhase.COPY]
    assert [one.loaded_bytes for one in copying] == sorted(one.loaded_bytes for one in copying)
    assert copying[-1].loaded_bytes == copying[-1].total_bytes == placed.manifest.size_bytes
