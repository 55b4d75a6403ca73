"""What was made of checkpoints for engines: found, preferred, evicted first, never served wrong."""

from dataclasses import replace
from pathlib import Path

import pytest

from sllm.checkpoint.format.layout import PARTITION_BYTES
from sllm.checkpoint.saving.saving import write_tensors
from sllm.errors import NoCapacity, SourceChanged
from sllm.node.store.lease import Lease
from sllm.node.tiers.checkpoints import SourceRecord
from sllm.node.tiers.types import Tier
from sllm.node.transfers.work import Form
from tests.checkpoint.checkpoints import flip_bit, random_weights, write_model
from tests.checkpoint.plans import CHUNK
from tests.node.stores import MODEL_BYTES, Bench

FORM = Form("engine-1")
WORTH_IT = Form("engine-1", gain_seconds=3600.0)


async def made(bench: Bench, seed: int = 0, form: Form = FORM) -> tuple[SourceRecord, Path]:
    """Makes something of a model that is on SSD; where it is."""
    lease = await bench.promote(seed, Tier.SSD)
    record = replace(lease.record, form=form.name, made_of=lease.digest)
    async with bench.store.ready_made.making(MODEL_BYTES) as directory:
        manifest = write_tensors(random_weights(seed + 50), directory, CHUNK, PARTITION_BYTES)
        await bench.store.ready_made.add(record, directory, MODEL_BYTES)
    lease.release()
    bench.store.check_integrity()
    return record, bench.directory / "tier" / manifest.digest


async def ask(bench: Bench, form: Form | None, seed: int = 0, tier: Tier = Tier.DRAM) -> Lease:
    lease = await bench.store.promote(bench.model(seed), None, tier, pack=True, form=form)
    bench.store.check_integrity()
    return lease


async def test_it_is_given_to_those_it_was_made_for(bench: Bench) -> None:
    record, _ = await made(bench)
    for form, given in ((FORM, FORM.name), (None, ""), (Form("engine-2"), "")):
        lease = await ask(bench, form)
        assert lease.record.form == given
        assert lease.record.made_of == (record.made_of if given else "")
        lease.release()


async def test_what_serves_sooner_is_given(bench: Bench) -> None:
    await made(bench)
    (await ask(bench, None)).release()  # as published, it is in the pool
    for form, given in ((FORM, ""), (WORTH_IT, FORM.name), (FORM, FORM.name)):
        lease = await ask(bench, form)
        assert lease.record.form == given  # the last: by now it is in the pool as well
        lease.release()


async def test_it_is_read_ahead_where_nothing_has_to_go_for_it(bench: Bench) -> None:
    record, path = await made(bench)
    await bench.store.read_ahead(bench.model(0), None, FORM)
    assert bench.on(Tier.DRAM) == {path.name}
    await bench.reopen(pool_models=1)
    lease = await bench.promote(1, Tier.DRAM)
    await bench.store.read_ahead(bench.model(0), None, FORM)
    assert bench.on(Tier.DRAM) == {lease.digest}
    assert record.form


async def test_it_is_told_of_what_it_was_made(bench: Bench) -> None:
    record, path = await made(bench)
    (await ask(bench, FORM)).release()
    told = {copy.digest: copy for copy in bench.store.copies()}
    assert told[path.name].made_of == record.made_of
    assert told[path.name].made_for == "engine"
    assert told[path.name].sources == ()
    assert told[record.made_of].made_of == ""
    assert told[record.made_of].sources


async def test_another_process_finds_it(bench: Bench) -> None:
    _, path = await made(bench)
    await bench.reopen()
    lease = await ask(bench, FORM)
    assert lease.digest == path.name
    assert not bench.store.ready_made.is_lacking(lease.record)


async def test_it_goes_before_all_that_is_published(bench: Bench) -> None:
    await bench.reopen(ssd_models=3.2)
    _, path = await made(bench)
    published = {await bench.leave(seed, Tier.SSD) for seed in (0, 1)}
    assert bench.on(Tier.SSD) == {path.name, *published}
    published.add(await bench.leave(2, Tier.SSD))
    assert bench.on(Tier.SSD) == published


async def test_nothing_goes_for_it(bench: Bench) -> None:
    await bench.reopen(ssd_models=1.5)
    await bench.leave(0, Tier.SSD)
    assert not bench.store.ready_made.has_room(MODEL_BYTES)
    assert bench.store.ready_made.has_room(MODEL_BYTES // 4)


async def test_it_goes_with_what_it_was_made_of(bench: Bench) -> None:
    record, path = await made(bench)
    (await ask(bench, FORM)).release()
    await bench.store.evict(record.made_of, Tier.SSD)
    assert not bench.store.copies()
    assert not path.exists()


async def test_it_outlives_what_it_was_made_of_while_it_is_used(bench: Bench) -> None:
    record, path = await made(bench)
    lease = await ask(bench, FORM)
    await bench.store.evict(record.made_of, Tier.SSD)
    assert bench.on(Tier.SSD) == bench.on(Tier.DRAM) == {path.name}
    lease.release()


async def test_of_a_source_that_was_changed_it_is_not_given(bench: Bench) -> None:
    await made(bench)
    write_model(bench.directory / "model0", seed=9)
    lease = await ask(bench, WORTH_IT)
    assert lease.record.form == ""
    lease.release()
    assert [copy.made_of for copy in bench.store.copies() if copy.tier is Tier.SSD].count("") == 3


async def test_a_corrupt_one_is_not_given(bench: Bench) -> None:
    record, path = await made(bench)
    flip_bit(path / "partition-00000.bin", 5000)
    lease = await ask(bench, FORM)
    assert lease.record.form == ""
    assert path.name not in bench.on(Tier.SSD)
    assert bench.store.ready_made.is_lacking(record)
    lease.release()


async def test_one_that_is_dropped_can_be_made_again(bench: Bench) -> None:
    record, path = await made(bench)
    await bench.store.ready_made.drop(record)
    assert bench.store.ready_made.is_lacking(record)
    assert (await made(bench))[1] == path


async def test_one_that_was_not_finished_leaves_nothing(bench: Bench) -> None:
    await bench.leave(0, Tier.SSD)
    before = bench.store.usage()
    async with bench.store.ready_made.making(MODEL_BYTES) as directory:
        write_tensors(random_weights(5), directory, CHUNK, PARTITION_BYTES)
        assert bench.store.usage() != before
    assert not directory.exists()
    assert bench.store.usage() == before


async def test_where_it_has_no_room_what_is_published_is_served(bench: Bench) -> None:
    await bench.reopen(pool_models=1)
    _, path = await made(bench)
    published = await ask(bench, None)  # an instance serves it as it is published
    lease = await ask(bench, WORTH_IT)
    assert lease.record.form == ""
    lease.release()
    published.release()
    lease = await ask(bench, Form(FORM.name))
    assert lease.digest == published.digest  # it is in the pool, which has no room for both
    assert path.name in bench.on(Tier.SSD)
    lease.release()


async def test_of_a_source_that_changes_meanwhile_it_is_not_taken_in(bench: Bench) -> None:
    lease = await bench.promote(0, Tier.SSD)
    record = replace(lease.record, form=FORM.name, made_of=lease.digest)
    lease.release()
    write_model(bench.directory / "model0", seed=9)
    changed = await ask(bench, None, tier=Tier.SSD)
    async with bench.store.ready_made.making(MODEL_BYTES) as directory:
        write_tensors(random_weights(5), directory, CHUNK, PARTITION_BYTES)
        with pytest.raises(SourceChanged):
            await bench.store.ready_made.add(record, directory, MODEL_BYTES)
    assert changed.record in bench.store._ssd.copies[changed.digest].sources
    changed.release()


async def test_what_takes_more_than_was_kept_for_it_is_not_taken_in(bench: Bench) -> None:
    lease = await bench.promote(0, Tier.SSD)
    record = replace(lease.record, form=FORM.name, made_of=lease.digest)
    async with bench.store.ready_made.making(1000) as directory:
        write_tensors(random_weights(5), directory, CHUNK, PARTITION_BYTES)
        with pytest.raises(NoCapacity):
            await bench.store.ready_made.add(record, directory, 1000)
    assert bench.on(Tier.SSD) == {lease.digest}
    lease.release()


async def test_an_earlier_form_of_the_same_engine_goes(bench: Bench) -> None:
    record, path = await made(bench)
    newer = replace(record, form="engine-2")
    await bench.store.ready_made.drop_obsolete(replace(record, form="other-1"))
    await bench.store.ready_made.drop_obsolete(record)
    assert path.name in bench.on(Tier.SSD)
    await bench.store.ready_made.drop_obsolete(newer)
    assert path.name not in bench.on(Tier.SSD)


async def test_of_a_pinned_checkpoint_it_goes_last(bench: Bench) -> None:
    """Whoever pins wants starts to be short: what nobody has pinned goes before."""
    await bench.reopen(ssd_models=4.2, pool_models=3)
    _, path = await made(bench)
    pinned = await ask(bench, None)
    with bench.store.keeping.pinned(pinned):
        await bench.leave(1, Tier.DRAM)
        await bench.store.read_ahead(bench.model(0), None, FORM)
        assert path.name in bench.on(Tier.DRAM)
        for seed in (2, 3):
            await bench.leave(seed, Tier.DRAM)
            assert {path.name, pinned.digest} <= bench.on(Tier.DRAM)
            assert {path.name, pinned.digest} <= bench.on(Tier.SSD)
        leases = [await bench.promote(seed, Tier.DRAM) for seed in (1, 2)]
        assert path.name not in bench.on(Tier.DRAM), "and it goes rather than others wait"
        for one in leases:
            one.release()
    pinned.release()


async def test_of_a_pinned_checkpoint_it_is_read_though_others_go(bench: Bench) -> None:
    await bench.reopen(pool_models=2)
    _, path = await made(bench)
    pinned = await ask(bench, None)
    await bench.leave(1, Tier.DRAM)
    await bench.store.read_ahead(bench.model(0), None, FORM)
    assert path.name not in bench.on(Tier.DRAM)
    with bench.store.keeping.pinned(pinned):
        await bench.store.read_ahead(bench.model(0), None, FORM)
        assert bench.on(Tier.DRAM) == {pinned.digest, path.name}
    pinned.release()
