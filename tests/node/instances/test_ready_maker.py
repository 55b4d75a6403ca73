"""What is made ready, when, and what becomes of it where something is in the way."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from sllm import errors, rpc
from sllm.checkpoint.format.form import WeightForm, form_file
from sllm.checkpoint.format.layout import PARTITION_BYTES
from sllm.checkpoint.format.manifest import Manifest
from sllm.checkpoint.saving.saving import write_tensors
from sllm.clock import Clock, ManualClock, MonotonicClock
from sllm.node.api.peer_service import PeerServicer
from sllm.node.device.interface import Place
from sllm.node.instances.ready_maker import CALM_SECONDS, ReadyMaker
from sllm.node.instances.running import Running
from sllm.node.instances.spec import EngineSpec, InstanceSpec
from sllm.node.instances.unmade import Unmade
from sllm.node.instances.worker_client import Worker
from sllm.node.peers.types import FormPeers, Network, Peers
from sllm.node.store.lease import Lease
from sllm.node.tiers.types import Tier
from tests.checkpoint.checkpoints import flip_bit, random_weights, write_model
from tests.checkpoint.plans import CHUNK
from tests.node.serving import Stalling, serving
from tests.node.stores import Bench
from tests.support import assert_eventually

ENGINE = EngineSpec("transformers", None, None, None)


class Writer:
    """In the place of a worker: writes other weights, or fails."""

    def __init__(self) -> None:
        self.launched = 0
        self.ranks = 0
        self.failure: errors.SllmError | None = None
        self.may_write = asyncio.Event()
        self.may_write.set()
        self.killed = asyncio.Event()
        self.stopped = True

    async def launch(self, engine: str, name: str, ranks: int) -> Worker:
        self.launched += 1
        self.ranks = ranks
        self.stopped = False
        return cast(Worker, self)

    async def wait_until_serving(self) -> None:
        """At once."""

    async def prepare(self, directory: Path, engine: EngineSpec) -> None:
        assert (directory / "config.json").exists()

    async def make_ready(
        self, manifest: Manifest, place: Place, directory: Path, form: WeightForm
    ) -> float:
        waits = [asyncio.ensure_future(one.wait()) for one in (self.may_write, self.killed)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if self.killed.is_set():
            raise errors.WorkerDied("was killed")
        if self.failure:
            raise self.failure
        files = {"form.json": form_file(form)}
        write_tensors(random_weights(77), directory, CHUNK, PARTITION_BYTES, files)
        return 0.1

    def kill(self, verdict: str) -> None:
        self.killed.set()

    async def stop(self) -> None:
        self.stopped = True


@pytest.fixture
def writer() -> Writer:
    return Writer()


@pytest.fixture
async def lease(bench: Bench) -> AsyncIterator[Lease]:
    """Of a model that an instance serves."""
    lease = await bench.store.promote(bench.model(0), None, Tier.DRAM)
    yield lease
    lease.release()


def maker_of(
    bench: Bench,
    writer: Writer,
    least_bytes: int | None = 0,
    free_bytes: int = 1 << 30,
    clock: Clock | None = None,
) -> ReadyMaker:
    return ReadyMaker(
        bench.store,
        writer.launch,
        lambda: free_bytes,
        least_bytes,
        clock or MonotonicClock(),
        CALM_SECONDS if clock else 0.0,
    )


def spec_of(bench: Bench, seed: int = 0) -> InstanceSpec:
    return InstanceSpec("i", "m", bench.model(seed), ENGINE, 1 << 20)


def running(lease: Lease, *, ready_made: bool = False) -> Running:
    unused: Any = None
    return Running(unused, lease.digest, lease.size_bytes, Tier.DRAM, 0, unused, 0, "", ready_made)


def made(bench: Bench, tier: Tier) -> list[str]:
    return [one.made_of for one in bench.store.copies() if one.made_of and one.tier is tier]


async def test_it_is_made_once_and_read_ahead(bench: Bench, writer: Writer, lease: Lease) -> None:
    maker = maker_of(bench, writer)
    for _ in range(3):
        maker.started(spec_of(bench), running(lease), 1.0)
    await assert_eventually(lambda: made(bench, Tier.DRAM) == [lease.digest])
    maker.started(spec_of(bench), running(lease), 1.0)
    await maker.close()
    assert writer.launched == 1
    assert writer.stopped
    assert not maker.problems.kept
    form = maker.form(spec_of(bench))
    assert form is None  # it is closed


async def test_what_several_devices_read_is_made_by_as_many(
    bench: Bench, writer: Writer, lease: Lease
) -> None:
    maker, spec = maker_of(bench, writer), spec_of(bench)
    parted = replace(spec, engine=replace(spec.engine, tensor_parallel=2))
    maker.started(parted, running(lease), 7.0)
    await assert_eventually(lambda: made(bench, Tier.DRAM) == [lease.digest])
    assert writer.ranks == 2
    (copy,) = [one for one in bench.store.copies() if one.made_of and one.tier is Tier.SSD]
    assert copy.made_for == "transformers:tp=2"
    assert copy.form
    assert (copy.form.engine, copy.form.ranks, copy.form.made_of) == (
        "transformers",
        2,
        lease.digest,
    )
    whole, part = maker.form(spec), maker.form(parted)
    assert whole
    assert part
    assert whole.name != part.name
    assert (whole.gain_seconds, part.gain_seconds) == (0.0, 7.0)
    await maker.close()


async def test_the_gain_is_what_starts_without_it_took(
    bench: Bench, writer: Writer, lease: Lease
) -> None:
    maker = maker_of(bench, writer)
    before = maker.form(spec_of(bench))
    assert before
    assert before.gain_seconds == 0.0
    maker.started(spec_of(bench), running(lease, ready_made=True), 0.1)
    maker.started(spec_of(bench), running(lease), 7.0)
    after = maker.form(spec_of(bench))
    assert after
    assert (after.name, after.gain_seconds) == (before.name, 7.0)
    await maker.close()


@pytest.mark.parametrize("least_bytes", [None, 1 << 30])
async def test_small_models_stay_as_they_are(
    bench: Bench, writer: Writer, lease: Lease, least_bytes: int | None
) -> None:
    maker = maker_of(bench, writer, least_bytes)
    maker.started(spec_of(bench), running(lease), 1.0)
    await maker.close()
    assert writer.launched == 0


@pytest.mark.parametrize(
    ("failure", "again"),
    [(errors.UnsupportedModel("no"), 0), (errors.NoCapacity("the disk is full"), 1)],
)
async def test_what_cannot_be_made_is_not_tried_for_ever(
    bench: Bench, writer: Writer, lease: Lease, failure: errors.SllmError, again: int
) -> None:
    maker = maker_of(bench, writer)
    before, writer.failure = bench.store.usage(), failure
    for launches in (1, 1 + again):
        maker.started(spec_of(bench), running(lease), 1.0)
        await assert_eventually(lambda: writer.launched == launches and writer.stopped)  # noqa: B023
        await assert_eventually(lambda: not maker.is_working)
        assert maker.problems.kept == {Unmade(lease.digest, "transformers"): failure.message}
    assert bench.store.usage() == before
    await maker.close()


async def test_it_gives_way_to_an_instance_that_needs_the_memory(
    bench: Bench, writer: Writer, lease: Lease
) -> None:
    maker = maker_of(bench, writer)
    writer.may_write.clear()
    maker.started(spec_of(bench), running(lease), 1.0)
    await assert_eventually(lambda: not writer.stopped)
    maker.give_way(free_bytes=1 << 30)
    assert not writer.killed.is_set()
    maker.give_way(free_bytes=0)
    await assert_eventually(lambda: not maker.is_working)
    assert writer.stopped
    writer.killed.clear()
    writer.may_write.set()
    maker.started(spec_of(bench), running(lease), 1.0)  # the next start has it made
    await assert_eventually(lambda: made(bench, Tier.DRAM) == [lease.digest])
    await maker.close()


async def test_closing_gives_it_up(bench: Bench, writer: Writer, lease: Lease) -> None:
    maker = maker_of(bench, writer)
    before = bench.store.usage()
    writer.may_write.clear()
    maker.started(spec_of(bench), running(lease), 1.0)
    await assert_eventually(lambda: writer.launched)
    await maker.close()
    assert writer.stopped
    assert bench.store.usage() == before


async def test_without_memory_it_is_not_begun(bench: Bench, writer: Writer, lease: Lease) -> None:
    maker = maker_of(bench, writer, free_bytes=lease.size_bytes)
    maker.started(spec_of(bench), running(lease), 1.0)
    await assert_eventually(lambda: not maker.is_working)
    assert writer.launched == 0
    await maker.close()


async def test_of_a_source_that_was_changed_nothing_is_made(
    bench: Bench, writer: Writer, lease: Lease
) -> None:
    maker = maker_of(bench, writer)
    write_model(bench.directory / "model0", seed=9)
    found = replace(running(lease), identity=lease.record.identity)
    maker.started(spec_of(bench), found, 1.0)
    await assert_eventually(lambda: not maker.is_working)
    assert writer.launched == 0
    assert [copy.digest for copy in bench.store.copies() if copy.tier is Tier.SSD] == [lease.digest]
    await maker.close()


async def test_it_gives_its_room_up_when_a_start_asks(
    bench: Bench, writer: Writer, lease: Lease
) -> None:
    maker, before = maker_of(bench, writer), bench.store.usage()
    assert not await maker.make_room()
    writer.may_write.clear()
    maker.started(spec_of(bench), running(lease), 1.0)
    await assert_eventually(lambda: not writer.stopped)
    assert bench.store.usage() != before
    assert await maker.make_room()
    assert bench.store.usage() == before
    await maker.close()


@pytest.mark.parametrize("making", [False, True])
async def test_who_needs_its_room_gets_it(
    bench: Bench, writer: Writer, lease: Lease, making: bool
) -> None:
    maker, asked = maker_of(bench, writer), 0

    async def bring_up() -> str:
        nonlocal asked
        asked += 1
        if asked == 1 or not writer.stopped:
            raise errors.NoCapacity("no room")
        return "brought"

    if making:
        writer.may_write.clear()
        maker.started(spec_of(bench), running(lease), 1.0)
        await assert_eventually(lambda: not writer.stopped)
        assert await maker.with_room(bring_up) == "brought"
    else:
        with pytest.raises(errors.NoCapacity):
            await maker.with_room(bring_up)
    assert asked == 1 + making
    await maker.close()


async def test_what_holds_its_source_is_told_to_give_way(
    bench: Bench, writer: Writer, lease: Lease
) -> None:
    """So that placement counts on the room."""
    maker = maker_of(bench, writer)
    writer.may_write.clear()
    maker.started(spec_of(bench), running(lease), 1.0)
    await assert_eventually(lambda: not writer.stopped)

    def leased() -> list[bool]:
        return [one.leased for one in bench.store.copies() if one.tier is Tier.DRAM]

    assert leased() == [True]
    lease.release()
    assert leased() == [False]
    assert await maker.make_room()
    await bench.store.evict(lease.digest, Tier.DRAM)
    assert leased() == []
    await maker.close()


async def settled() -> None:
    """Everybody has come to where they wait."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_nothing_is_made_while_models_take_turns(
    bench: Bench, writer: Writer, lease: Lease
) -> None:
    clock = ManualClock()
    maker = maker_of(bench, writer, clock=clock)
    maker.started(spec_of(bench), running(lease), 1.0)
    for _ in range(5):
        await settled()
        clock.advance(CALM_SECONDS * 0.9)
        maker.started(spec_of(bench), running(lease, ready_made=True), 0.1)
        assert not await maker.make_room()
    assert maker.is_working
    assert writer.launched == 0
    await settled()
    clock.advance(CALM_SECONDS)
    await assert_eventually(lambda: made(bench, Tier.DRAM) == [lease.digest])
    await maker.close()


async def test_what_a_start_has_dropped_is_made_once_more(
    bench: Bench, writer: Writer, lease: Lease
) -> None:
    maker, dropped = maker_of(bench, writer), replace(running(lease), dropped_ready=True)
    maker.started(spec_of(bench), dropped, 1.0)
    await assert_eventually(lambda: not maker.is_working)
    assert made(bench, Tier.DRAM) == [lease.digest]
    (copy,) = [one for one in bench.store.copies() if one.made_of and one.tier is Tier.SSD]
    await bench.store.evict(copy.digest, Tier.SSD)
    maker.started(spec_of(bench), dropped, 1.0)
    await assert_eventually(lambda: not maker.is_working)
    assert writer.launched == 1
    await maker.close()


async def test_what_has_left_the_pool_is_not_fetched_for_it(bench: Bench, writer: Writer) -> None:
    maker = maker_of(bench, writer)
    lease = await bench.store.promote(bench.model(0), None, Tier.DRAM)
    lease.release()
    await bench.store.evict(lease.digest, Tier.SSD)
    maker.started(spec_of(bench), running(lease), 1.0)
    await assert_eventually(lambda: not maker.is_working)
    assert writer.launched == 0
    assert not bench.store.copies()
    await maker.close()


@pytest.mark.parametrize(("how", "launched"), [("given", 0), ("spoilt", 1), ("dropped", 1)])
async def test_what_another_node_has_made_is_made_here_only_where_that_is_of_no_use(
    bench: Bench, writer: Writer, lease: Lease, tmp_path: Path, how: str, launched: int
) -> None:
    first, second, spec = maker_of(bench, writer), Writer(), spec_of(bench)
    first.started(spec, running(lease), 1.0)
    await assert_eventually(lambda: made(bench, Tier.DRAM) == [lease.digest])
    (copy,) = [one for one in bench.store.copies() if one.made_of and one.tier is Tier.SSD]
    await assert_eventually(lambda: not first.is_working)  # it holds what it has made until then
    if how == "spoilt":
        flip_bit(bench.directory / "tier" / copy.digest / "partition-00000.bin", 9000)
        await bench.store.evict(copy.digest, Tier.DRAM)
    other = Bench(tmp_path / "other")
    other.network = Network("other", rpc.thread_channel)
    await other.open()
    own = await other.store.promote(bench.model(0), None, Tier.DRAM)
    async with serving(PeerServicer(bench.store.sharing, bench.store.giving_pages)) as giver:
        assert copy.form
        offered = FormPeers(copy.form.name, Peers((giver,), copy.digest))
        found = replace(running(own), dropped_ready=how == "dropped")
        maker = maker_of(other, second)
        maker.started(replace(spec, forms=(offered,)), found, 1.0)
        await assert_eventually(lambda: made(other, Tier.DRAM) == [own.digest])
    assert second.launched == launched
    assert not maker.problems.kept
    own.release()
    for one in (first, maker):
        await one.close()
    await other.close()


async def test_who_asks_for_its_room_before_it_is_fetched_does_not_wait_for_that(
    bench: Bench, writer: Writer
) -> None:
    bench.network = Network("bench", rpc.thread_channel)
    await bench.reopen()
    maker, stalling = maker_of(bench, writer), Stalling()
    lease = await bench.store.promote(bench.model(0), None, Tier.DRAM)
    form = maker.form(spec_of(bench))
    assert form
    async with serving(stalling) as giver:
        offered = FormPeers(form.name, Peers((giver,), "0" * 32))
        maker.started(replace(spec_of(bench), forms=(offered,)), running(lease), 1.0)
        await asyncio.sleep(0)
        assert await maker.make_room(), "it has just begun"
        assert not maker.is_working
    assert not stalling.asked
    assert not writer.launched
    lease.release()
    await maker.close()
