"""What was made of a packed checkpoint ahead of time: served where it lies, or not at all."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sllm.checkpoint.format.form import WeightForm, form_file
from sllm.checkpoint.format.layout import PARTITION_BYTES
from sllm.checkpoint.format.manifest_file import read_manifest
from sllm.checkpoint.saving.saving import write_tensors
from sllm.node.store.lease import Lease
from sllm.node.tiers.types import Tier
from sllm.node.transfers.work import Form
from tests.checkpoint.checkpoints import flip_bit, import_model, random_weights, write_model
from tests.checkpoint.plans import CHUNK
from tests.node.stores import Bench

FORM = WeightForm("engine-1", "engine", versions={"engine": "1.0"}, dtype="float32")
WEIGHTS = 77


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    import_model(write_model(tmp_path / "model"), tmp_path / "packed")
    return tmp_path / "packed"


def made(
    packed: Path, form: WeightForm = FORM, made_of: str = "", said: Mapping[str, Any] | None = None
) -> Path:
    """Writes a form into a packed checkpoint; where it is."""
    directory = packed / "forms" / form.name
    directory.parent.mkdir(exist_ok=True)
    form = replace(form, made_of=made_of or digest_of(packed))
    files = {"form.json": json.dumps({**json.loads(form_file(form)), **(said or {})}).encode()}
    write_tensors(random_weights(WEIGHTS), directory, CHUNK, PARTITION_BYTES, files)
    return directory


def digest_of(packed: Path) -> str:
    return read_manifest(packed).digest


async def ask(bench: Bench, packed: Path, form: str = FORM.name, dtype: str | None = None) -> Lease:
    lease = await bench.store.promote(str(packed), dtype, Tier.DRAM, form=Form(form))
    bench.store.check_integrity()
    return lease


async def test_the_first_start_has_it_and_nothing_is_copied(bench: Bench, packed: Path) -> None:
    directory = made(packed)
    before = bench.store.usage()[0].used_bytes
    lease = await ask(bench, packed)
    assert (lease.record.form, lease.record.made_of) == (FORM.name, digest_of(packed))
    assert bench.on(Tier.DRAM) == {digest_of(directory)}
    assert bench.store.usage()[0].used_bytes - before < digest_bytes(directory)
    (copy,) = [one for one in bench.store.copies() if one.tier is Tier.DRAM]
    assert copy.form == replace(FORM, made_of=digest_of(packed))
    assert (copy.made_for, copy.made_of) == ("engine", digest_of(packed))
    lease.release()


def digest_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.glob("partition-*"))


async def test_another_process_finds_it(bench: Bench, packed: Path) -> None:
    made(packed)
    (await ask(bench, packed)).release()
    await bench.reopen()
    known = [copy.form for copy in bench.store.copies() if copy.made_of]
    assert known == [replace(FORM, made_of=digest_of(packed))]
    lease = await ask(bench, packed)
    assert lease.record.form == FORM.name
    lease.release()


async def test_one_for_another_version_is_not_used(bench: Bench, packed: Path) -> None:
    made(packed)
    lease = await ask(bench, packed, form="engine-2")
    assert (lease.record.form, lease.digest) == ("", digest_of(packed))
    lease.release()


async def test_who_says_the_dtype_has_it_as_well(bench: Bench, packed: Path) -> None:
    """What was packed is in that dtype, or refused."""
    made(packed)
    lease = await ask(bench, packed, dtype="float32")
    assert lease.record.form == FORM.name
    lease.release()


@pytest.mark.parametrize("fault", ["foreign", "cut", "another's", "elsewhere"])
async def test_one_that_is_not_what_it_should_be_is_refused(
    bench: Bench, packed: Path, fault: str
) -> None:
    if fault == "foreign":
        made(packed, made_of="0" * 32)
    elif fault == "cut":
        (made(packed) / "partition-00000.bin").write_bytes(b"")
    elif fault == "another's":
        made(packed, replace(FORM, name="engine-2")).rename(packed / "forms" / FORM.name)
    else:
        made(packed).rename(packed.parent / "away")
        (packed / "forms" / FORM.name).symlink_to(packed.parent / "away")
    for _ in range(2):
        lease = await ask(bench, packed)
        assert (lease.record.form, lease.digest) == ("", digest_of(packed))
        lease.release()


@pytest.mark.parametrize(
    "said",
    [
        {"ranks": 1 << 40},
        {"versions": {"engine": "1" * 5000}},
        {"versions": {str(number): "1" for number in range(1000)}},
        {"kernels": "\ud800"},
        {"dtype": []},
        {"more": json.loads("[" * 500 + "]" * 500)},
    ],
    ids=lambda said: next(iter(said)),
)
async def test_one_that_says_what_no_report_can_is_refused(
    bench: Bench, packed: Path, said: dict[str, Any]
) -> None:
    """It would keep the node from reporting at all, also after a restart."""
    made(packed, said=said)
    lease = await ask(bench, packed)
    assert (lease.record.form, lease.digest) == ("", digest_of(packed))
    lease.release()


async def test_a_corrupt_one_is_dropped_once_and_for_all(bench: Bench, packed: Path) -> None:
    """It can be made anew, of what is published."""
    flip_bit(made(packed) / "partition-00000.bin", 5000)
    for _ in range(2):
        lease = await ask(bench, packed)
        assert (lease.record.form, lease.digest) == ("", digest_of(packed))
        record = replace(lease.record, form=FORM.name, made_of=lease.digest)
        assert bench.store.ready_made.is_lacking(record)
        lease.release()


async def test_one_of_no_use_to_a_worker_is_not_taken_again(bench: Bench, packed: Path) -> None:
    made(packed)
    lease = await ask(bench, packed)
    lease.release()
    await bench.store.ready_made.drop(lease.record)
    lease = await ask(bench, packed)
    assert lease.record.form == ""
    lease.release()


async def test_it_goes_with_its_checkpoint_and_comes_back_with_it(
    bench: Bench, packed: Path
) -> None:
    directory = made(packed)
    published = await bench.store.promote(str(packed), None, Tier.SSD)
    published.release()
    (await ask(bench, packed)).release()
    await bench.store.evict(published.digest, Tier.SSD)
    assert not bench.store.copies()
    assert directory.exists()
    lease = await ask(bench, packed)
    assert lease.record.form == FORM.name
    lease.release()
