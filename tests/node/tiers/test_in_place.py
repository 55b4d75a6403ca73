"""Safetensors that are served where they lie."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sllm.checkpoint.format.layout import first_use
from sllm.checkpoint.format.manifest_file import read_manifest
from sllm.errors import CheckpointCorrupt, SourceChanged
from sllm.node.store.lease import Lease
from sllm.node.tiers.types import Tier
from tests.checkpoint.checkpoints import (
    assert_same,
    flip_bit,
    import_model,
    random_weights,
    tensors_in_pool,
    write_model,
)
from tests.node.stores import Bench, gate_on


async def promote(bench: Bench, seed: int = 0, tier: Tier = Tier.DRAM) -> Lease:
    """Promotes a model in place, and compares every tensor."""
    lease = await bench.store.promote(bench.model(seed), None, tier)
    bench.store.check_integrity()
    if tier is Tier.DRAM:
        found = tensors_in_pool(lease.manifest, bench.pool, lease.chunks)
        assert_same(found, random_weights(seed))
    return lease


async def drop_from_pool(bench: Bench, lease: Lease) -> None:
    lease.release()
    await bench.store.evict(lease.digest, Tier.DRAM)


def weights_of(bench: Bench, seed: int = 0) -> Path:
    return Path(bench.model(seed)) / "model.safetensors"


def flip_silently(path: Path, offset: int) -> None:
    """What a bad disk does: the file's times stay what they were."""
    before = path.stat()
    flip_bit(path, offset)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


async def test_safetensors_are_read_where_they_lie(bench: Bench) -> None:
    on_ssd = await promote(bench, tier=Tier.SSD)
    lease = await promote(bench)
    assert lease.digest == on_ssd.digest
    (directory,) = (bench.directory / "tier").glob("[0-9a-f]*")
    assert {path.name for path in directory.iterdir()} == {
        "config.json",
        "tokenizer.json",
        ".in-place.json",
        ".sources.json",
    }
    assert lease.directory == directory
    assert lease.size_bytes == weights_of(bench).stat().st_size


async def test_shards_are_partitions(bench: Bench) -> None:
    directory = bench.directory / "model0"
    write_model(directory)
    whole = random_weights(0)
    names = sorted(whole)
    os.unlink(directory / "model.safetensors")
    for index, part in enumerate((names[:2], names[2:])):
        save_file({name: whole[name] for name in part}, directory / f"s-{index}.safetensors")
    lease = await promote(bench)
    assert len(lease.chunks) == 2


async def test_tensors_between_elements_are_right_too(bench: Bench) -> None:
    tensors = {"a": torch.arange(3, dtype=torch.uint8), "b": torch.arange(9, dtype=torch.float32)}
    directory = bench.directory / "odd"
    write_model(directory, tensors)
    lease = await bench.store.promote(str(directory), None, Tier.DRAM)
    assert_same(tensors_in_pool(lease.manifest, bench.pool, lease.chunks), tensors)


async def test_packing_is_for_those_who_ask(bench: Bench) -> None:
    in_place = await promote(bench)
    packed = await bench.promote(0, Tier.DRAM)
    assert packed.digest != in_place.digest
    assert (packed.directory / "partition-00000.bin").exists()
    again = await bench.store.promote(bench.model(0), None, Tier.DRAM)
    assert again.digest == packed.digest


async def test_the_next_process_finds_it_and_its_digests(bench: Bench) -> None:
    lease = await promote(bench)
    await drop_from_pool(bench, lease)
    await bench.reopen()
    (copy,) = bench.store.copies()
    assert (copy.digest, copy.tier) == (lease.digest, Tier.SSD)
    assert copy.sources == (Path(bench.model(0)).as_uri(),)
    flip_silently(weights_of(bench), 20_000)
    with pytest.raises(CheckpointCorrupt):
        await promote(bench)


async def test_the_next_process_forgets_what_has_changed(bench: Bench) -> None:
    await promote(bench)
    write_model(bench.directory / "model0", seed=1)
    await bench.reopen()
    assert bench.store.copies() == ()
    lease = await bench.store.promote(bench.model(0), None, Tier.DRAM)
    found = tensors_in_pool(lease.manifest, bench.pool, lease.chunks)
    assert_same(found, random_weights(1))


async def test_a_bit_that_flips_on_the_disk_is_found(bench: Bench) -> None:
    lease = await promote(bench)
    await drop_from_pool(bench, lease)
    flip_silently(weights_of(bench), 20_000)
    for _ in range(2):
        with pytest.raises(CheckpointCorrupt) as caught:
            await promote(bench)
        assert caught.value.metadata == {"file": str(weights_of(bench)), "offset": "16384"}
    assert bench.pool.used_bytes == 0
    flip_silently(weights_of(bench), 20_000)
    await promote(bench)


async def test_a_file_that_is_written_to_makes_another_checkpoint(bench: Bench) -> None:
    old = await promote(bench)
    write_model(bench.directory / "model0", seed=1)
    new = await bench.store.promote(bench.model(0), None, Tier.DRAM)
    assert new.digest != old.digest
    assert_same(tensors_in_pool(new.manifest, bench.pool, new.chunks), random_weights(1))
    assert_same(tensors_in_pool(old.manifest, bench.pool, old.chunks), random_weights(0))
    assert old.directory != new.directory
    assert (old.directory / "config.json").exists()


async def test_a_file_that_is_written_to_during_the_read_is_no_mix(bench: Bench) -> None:
    with gate_on("reads") as gate:
        gate.when_held = lambda: write_model(bench.directory / "model0", seed=1)
        gate.open()
        with pytest.raises(CheckpointCorrupt, match="was changed"):
            await bench.store.promote(bench.model(0), None, Tier.DRAM)
    assert bench.pool.used_bytes == 0
    lease = await bench.store.promote(bench.model(0), None, Tier.DRAM)
    found = tensors_in_pool(lease.manifest, bench.pool, lease.chunks)
    assert_same(found, random_weights(1))


@pytest.mark.parametrize("damage", ["truncated", "deleted", "unreadable"])
async def test_what_cannot_be_read_is_named_and_frees_its_chunks(bench: Bench, damage: str) -> None:
    path = weights_of(bench)

    def spoil() -> None:
        if damage == "truncated":
            os.truncate(path, 30_000)
        else:
            path.unlink()
        if damage == "unreadable":
            path.mkdir()

    with gate_on("reads") as gate:
        gate.when_held = spoil
        gate.open()
        with pytest.raises(CheckpointCorrupt) as caught:
            await bench.store.promote(bench.model(0), None, Tier.DRAM)
    assert caught.value.metadata["file"] == str(path)
    assert bench.pool.used_bytes == 0
    bench.store.check_integrity()


async def test_a_source_that_is_gone_is_served_from_the_pool(bench: Bench) -> None:
    first = await promote(bench)
    shutil.rmtree(bench.model(0))
    source = str(bench.directory / "model0")
    again = await bench.store.promote(source, None, Tier.DRAM)
    assert again.chunks == first.chunks
    assert (again.directory / "tokenizer.json").exists()
    first.release()
    again.release()
    await bench.store.evict(first.digest, Tier.DRAM)
    with pytest.raises(CheckpointCorrupt, match=r"model\.safetensors"):
        await bench.store.promote(source, None, Tier.DRAM)


def packed(bench: Bench, seed: int = 0) -> Path:
    """A directory as `sllm pack` writes it."""
    destination = bench.directory / f"packed{seed}"
    if not destination.exists():
        import_model(Path(bench.model(seed)), destination)
    return destination


async def promote_packed(bench: Bench, pack: bool = False) -> Lease:
    lease = await bench.store.promote(str(packed(bench)), None, Tier.DRAM, pack=pack)
    bench.store.check_integrity()
    assert_same(tensors_in_pool(lease.manifest, bench.pool, lease.chunks), random_weights())
    return lease


def files_of(lease: Lease) -> set[str]:
    return {path.name for path in lease.directory.iterdir() if not path.name.startswith(".")}


async def test_a_packed_checkpoint_is_read_where_it_lies(bench: Bench) -> None:
    lease = await promote_packed(bench)
    assert lease.digest == read_manifest(packed(bench)).digest
    assert files_of(lease) == {"config.json", "tokenizer.json"}
    await drop_from_pool(bench, lease)
    await bench.reopen()
    assert bench.on(Tier.SSD) == {lease.digest}
    again = await promote_packed(bench)
    assert again.from_tier is Tier.SSD


async def test_a_packed_checkpoint_is_copied_for_those_who_ask(bench: Bench) -> None:
    in_place = await promote_packed(bench)
    copied = await promote_packed(bench, pack=True)
    assert copied.digest == in_place.digest
    assert copied.chunks == in_place.chunks
    assert "partition-00000.bin" in files_of(copied)
    in_place.release()
    await drop_from_pool(bench, copied)
    shutil.rmtree(packed(bench))
    await bench.reopen()
    lease = await bench.store.promote(str(bench.directory / "packed0"), None, Tier.DRAM)
    assert_same(tensors_in_pool(lease.manifest, bench.pool, lease.chunks), random_weights())


async def test_a_bit_that_flips_in_a_packed_checkpoint_is_found_at_the_first_read(
    bench: Bench,
) -> None:
    path = packed(bench) / "partition-00000.bin"
    flip_silently(path, 20_000)
    for _ in range(2):
        with pytest.raises(CheckpointCorrupt) as caught:
            await promote_packed(bench)
        assert caught.value.metadata == {"file": str(path), "offset": "16384"}
    assert bench.pool.used_bytes == 0
    bench.store.check_integrity()
    flip_silently(path, 20_000)
    await promote_packed(bench)


async def test_a_packed_checkpoint_that_goes_bad_comes_from_another_source(bench: Bench) -> None:
    lease = await promote_packed(bench)
    await drop_from_pool(bench, lease)
    (packed(bench) / "partition-00000.bin").unlink()
    from_elsewhere = await bench.promote(0, Tier.DRAM)
    assert from_elsewhere.digest == lease.digest


async def test_what_is_there_must_be_what_was_deployed(bench: Bench) -> None:
    deployed = (await bench.store.inspect(bench.model(0), None)).record.identity
    lease = await bench.store.promote(bench.model(0), None, Tier.DRAM, identity=deployed)
    weights_of(bench).touch()
    again = await bench.store.promote(bench.model(0), None, Tier.DRAM, identity=deployed)
    assert again.digest != lease.digest, "it was written to, and so it is read again"
    write_model(bench.directory / "model0", seed=1)
    for work in (
        bench.store.inspect(bench.model(0), None, identity=deployed),
        bench.store.promote(bench.model(0), None, Tier.DRAM, identity=deployed),
    ):
        with pytest.raises(SourceChanged, match="model0"):
            await work
    found = await bench.store.promote(bench.model(0), None, Tier.DRAM)
    assert found.record.identity != deployed


async def test_another_tokenizer_is_another_checkpoint(bench: Bench) -> None:
    deployed = (await bench.store.inspect(bench.model(0), None)).record.identity
    (bench.directory / "model0" / "tokenizer.json").write_text('{"version": "1.1"}')
    with pytest.raises(SourceChanged):
        await bench.store.promote(bench.model(0), None, Tier.SSD, identity=deployed)


@pytest.mark.parametrize("pack", [False, True])
async def test_the_next_process_knows_what_a_source_was_that_is_gone(
    bench: Bench, pack: bool
) -> None:
    lease = await bench.store.promote(bench.model(0), None, Tier.SSD, pack=pack)
    identity = lease.record.identity
    await bench.reopen()
    if not pack:  # in place: what is gone is no checkpoint any more
        assert (await bench.store.inspect(bench.model(0), None)).record.identity == identity
        return
    shutil.rmtree(bench.directory / "model0")
    found = await bench.store.inspect(str(bench.directory / "model0"), None)
    assert found.record.identity == identity
    with pytest.raises(SourceChanged):
        await bench.store.inspect(str(bench.directory / "model0"), None, identity="other")


@pytest.mark.parametrize("order", [False, True], ids=["as published", "as used"])
async def test_experts_that_lie_apart_are_brought_together(bench: Bench, order: bool) -> None:
    """Or every worker would fuse them in memory of its own."""
    experts = {
        f"model.layers.{layer}.mlp.experts.{expert}.{part}_proj.weight": torch.randn(16, 16)
        for layer in range(2)
        for expert in range(12)
        for part in ("gate", "up", "down")
    }
    directory = Path(bench.model(0))
    (directory / "model.safetensors").write_bytes(in_order(experts, first_use if order else str))
    lease = await bench.store.promote(str(directory), None, Tier.DRAM)
    bench.store.check_integrity()
    assert_same(tensors_in_pool(lease.manifest, bench.pool, lease.chunks), experts)
    (kept,) = (bench.directory / "tier").glob("[0-9a-f]*")
    assert (kept / ".in-place.json").exists() == order
    file = "model.safetensors" if order else "partition-00000.bin"
    assert lease.manifest.partitions[0].file == file


def in_order(tensors: dict[str, torch.Tensor], key: Callable[[str], Any]) -> bytes:
    """A safetensors file whose tensors lie in the order of their names by a key."""
    header, content = {}, b""
    for name in sorted(tensors, key=key):
        raw = tensors[name].numpy().tobytes()
        place = [len(content), len(content) + len(raw)]
        header[name] = {"dtype": "F32", "shape": tensors[name].shape, "data_offsets": place}
        content += raw
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content
