import asyncio
import json

import pytest

from sllm.node.tiers.types import Tier
from sllm.node.transfers.work import LoadPhase, Progress
from tests.checkpoint.checkpoints import write_model
from tests.node.stores import MODEL_CHUNKS, Bench, gate_on
from tests.support import assert_eventually


async def test_a_checkpoint_climbs_from_tier_to_tier(bench: Bench) -> None:
    on_ssd = await bench.promote(0, Tier.SSD)
    assert (on_ssd.from_tier, on_ssd.chunks) == (Tier.REMOTE, ())
    assert [step.phase for step in on_ssd.steps] == [LoadPhase.IMPORT]
    in_dram = await bench.promote(0, Tier.DRAM)
    assert in_dram.from_tier is Tier.SSD
    assert [step.phase for step in in_dram.steps] == [LoadPhase.READ]
    again = await bench.promote(0, Tier.DRAM)
    assert (again.from_tier, again.steps, again.chunks) == (Tier.DRAM, (), in_dram.chunks)
    assert on_ssd.digest == in_dram.digest == again.digest
    assert json.loads((again.directory / "config.json").read_text())["model_type"] == "tiny"


async def test_from_the_source_into_the_pool_is_one_pass(bench: Bench) -> None:
    with gate_on("reads") as reads:
        lease = await bench.promote(0, Tier.DRAM)
    assert [step.phase for step in lease.steps] == [LoadPhase.IMPORT]
    assert lease.from_tier is Tier.REMOTE
    assert reads.begun == 0
    assert bench.on(Tier.SSD) == bench.on(Tier.DRAM) == {lease.digest}


async def test_steps_and_progress_tell_of_the_bytes(bench: Bench) -> None:
    seen: list[Progress] = []
    lease = await bench.promote(0, Tier.SSD, seen.append)
    assert {(p.phase, p.from_tier) for p in seen} == {(LoadPhase.IMPORT, Tier.REMOTE)}
    assert seen[-1].loaded_bytes == seen[-1].total_bytes > 0
    seen.clear()
    lease = await bench.promote(0, Tier.DRAM, seen.append)
    assert {(p.phase, p.from_tier) for p in seen} == {(LoadPhase.READ, Tier.SSD)}
    assert seen[0].loaded_bytes == 0
    assert seen[-1].loaded_bytes == seen[-1].total_bytes == lease.size_bytes
    (step,) = lease.steps
    assert step.size_bytes == lease.size_bytes
    assert step.duration > 0


@pytest.mark.parametrize("kind", ["imports", "reads"])
async def test_promotions_of_one_checkpoint_share_one_transfer(bench: Bench, kind: str) -> None:
    if kind == "reads":
        await bench.leave(0, Tier.SSD)
    with gate_on(kind) as gate:
        progress: list[list[Progress]] = [[], [], []]
        callers = [
            asyncio.create_task(bench.promote(0, Tier.DRAM, seen.append)) for seen in progress
        ]
        await assert_eventually(lambda: gate.begun and all(progress))
        gate.open()
        first, *others = await asyncio.gather(*callers)
        assert gate.begun == 1
    assert all(other.chunks == first.chunks for other in others)
    assert all(other.steps == first.steps for other in others)
    assert all(seen[-1].loaded_bytes == seen[-1].total_bytes > 0 for seen in progress)
    assert bench.pool.used_bytes == MODEL_CHUNKS * bench.pool.chunk_bytes


async def test_sources_of_the_same_content_share_a_copy(bench: Bench) -> None:
    write_model(bench.directory / "twin", seed=0)
    one = await bench.promote(0, Tier.DRAM)
    other = await bench.store.promote(str(bench.directory / "twin"), None, Tier.DRAM, pack=True)
    assert other.chunks == one.chunks
    (on_ssd, in_dram) = bench.store.copies()
    assert len(on_ssd.sources) == len(in_dram.sources) == 2
    bench.store.check_integrity()


async def test_the_same_content_is_in_the_pool_once_however_it_came(bench: Bench) -> None:
    write_model(bench.directory / "twin", seed=0)
    await bench.leave(0, Tier.SSD)
    with gate_on("reads") as gate:
        read = asyncio.create_task(bench.promote(0, Tier.DRAM))
        await assert_eventually(lambda: gate.begun)
        imported = await bench.store.promote(
            str(bench.directory / "twin"), None, Tier.DRAM, pack=True
        )
        gate.open()
        assert (await read).chunks == imported.chunks
    bench.store.check_integrity()
    assert bench.pool.used_bytes == MODEL_CHUNKS * bench.pool.chunk_bytes


async def test_dtypes_are_different_checkpoints_of_one_source(bench: Bench) -> None:
    plain = await bench.promote(0, Tier.SSD)
    half = await bench.store.promote(bench.model(0), "bfloat16", Tier.SSD)
    assert half.digest != plain.digest
    assert half.size_bytes < plain.size_bytes
    assert {tensor.dtype for tensor in half.manifest.tensors} == {"BF16"}
    assert len(bench.on(Tier.SSD)) == 2


async def test_a_source_can_be_inspected_before_and_after_its_import(bench: Bench) -> None:
    before = await bench.store.inspect(bench.model(0), "float16")
    assert before.digest is None
    source, read = bench.directory / "model0", before.directory
    assert read.parent == bench.directory / "tier"  # where none but the node writes
    assert (read / "config.json").read_bytes() == (source / "config.json").read_bytes()
    lease = await bench.store.promote(bench.model(0), "float16", Tier.SSD)
    after = await bench.store.inspect(bench.model(0), "float16")
    assert (after.directory, after.digest) == (lease.directory, lease.digest)
    assert after.size_bytes == before.size_bytes == sum(t.size for t in lease.manifest.tensors)
    assert before.tensors == after.tensors == lease.manifest.tensors


async def test_links_start_measured_and_follow_what_is_observed(bench: Bench) -> None:
    before = bench.store.links()
    ways = [(link.from_tier, link.to_tier) for link in before]
    assert ways == [
        (Tier.REMOTE, Tier.SSD),
        (Tier.SSD, Tier.DRAM),
        (Tier.DRAM, Tier.DEVICE),
    ]
    assert all(link.bytes_per_second > 0 for link in before)
    await bench.leave(0, Tier.SSD)
    await bench.leave(0, Tier.DRAM)
    after = bench.store.links()
    assert after[0].bytes_per_second != before[0].bytes_per_second
    assert after[1].bytes_per_second != before[1].bytes_per_second


async def test_loads_under_way_are_reported(bench: Bench) -> None:
    digest = await bench.leave(0, Tier.SSD)
    with gate_on("reads") as gate:
        read = asyncio.create_task(bench.promote(0, Tier.DRAM))
        await assert_eventually(lambda: gate.begun)
        (copy,) = [copy for copy in bench.store.copies() if copy.tier is Tier.DRAM]
        assert (copy.digest, copy.resident_bytes, copy.leased) == (digest, 0, True)
        assert bench.store.links()[1].queued_bytes == copy.size_bytes
        gate.open()
        await read
    assert bench.store.links()[1].queued_bytes == 0


async def test_watchers_hear_of_every_change(bench: Bench) -> None:
    seen: list[tuple[int, bool]] = []

    def look() -> None:
        copies = bench.store.copies()
        seen.append((len(copies), any(copy.leased for copy in copies)))

    bench.store.subscribe(look)
    lease = await bench.promote(0, Tier.DRAM)
    assert seen[-1] == (2, True)
    lease.release()
    assert seen[-1] == (2, False)
    await bench.store.evict(lease.digest, Tier.DRAM)
    assert seen[-1] == (1, False)
