"""Instances that take requests before all of their weights have been read."""

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from threading import Condition
from typing import Any

import pytest
import pytest_asyncio
from make_models import make_model
from serverlessllm.v1 import inference_service_pb2 as pb
from serverlessllm.v1 import types_pb2 as pb_types

from sllm import errors
from sllm.checkpoint.format.manifest import Manifest
from sllm.checkpoint.reading.chunk_reader import ChunkRead
from sllm.clock import MonotonicClock
from sllm.node.device.pool_device import PoolDevice
from sllm.node.generations.generation import Generation
from sllm.node.instances import arriving
from sllm.node.instances.instance import Instance, InstanceState
from sllm.node.instances.phases import PhaseKind
from sllm.node.instances.spec import EngineSpec, InstanceSpec
from sllm.node.instances.watchdog import Patience
from sllm.node.instances.worker_client import Worker
from sllm.node.instances.worker_messages import Attached, Prepared
from sllm.node.instances.zygote_client import WorkerSpec, Zygote
from sllm.node.tiers import first_use
from sllm.node.tiers.types import Tier
from tests.checkpoint.checkpoints import flip_bit
from tests.checkpoint.plans import CHUNK
from tests.node.stores import Bench
from tests.support import assert_eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

ENGINE = EngineSpec("transformers", None, 256, None, pack=True)
KV_BYTES = 1 << 20
SECONDS = 30.0
CLOCK = MonotonicClock()
PATIENCE = Patience(look_seconds=0.05, looks_unmoved=600)
"""A worker is soon looked after, but for one that waits for weights; busy machines take long."""
PREFILL = pb_types.PHASE_KIND_PREFILL
Answer = tuple[list[int], list[pb_types.Phase]]
"""Tokens, and the phases of a receipt."""
_numbers = count()


class Disk:
    """Gives as many chunks as it is let, in the order in which they are asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        """Their offsets."""
        self._given = 1 << 30
        self._changed = Condition()

    def give(self, count: int) -> None:
        """Of those that are asked for from now on, so many; the others wait."""
        with self._changed:
            self.asked.clear()
            self._given = count

    def give_all(self) -> None:
        with self._changed:
            self._given = 1 << 30
            self._changed.notify_all()

    def wait(self, offset: int) -> None:
        with self._changed:
            self.asked.append(offset)
            place = len(self.asked)
            assert self._changed.wait_for(lambda: place <= self._given, 60), "nobody gives it"


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk, bring = Disk(), ChunkRead.bring

    def brought(read: ChunkRead, memory: memoryview) -> None:
        disk.wait(read.offset)
        bring(read, memory)

    monkeypatch.setattr(ChunkRead, "bring", brought)
    yield disk
    disk.give_all()


class Watched(Worker):
    """One that counts how often it is looked after."""

    looks = 0

    async def steps(self, timeout: float) -> int | None:
        self.looks += 1
        return await super().steps(timeout)


class Node:
    """What of a node starts instances of one model."""

    def __init__(self, bench: Bench, zygote: Zygote, model: Path) -> None:
        self.bench = bench
        self.zygote = zygote
        self.model = model
        self.engine = ENGINE
        self.workers: list[Worker] = []
        self.worker_class: type[Worker] = Watched
        self.tokens: list[int] = []
        """What it answers."""

    @property
    def looks(self) -> int:
        """How often the last worker was looked after."""
        last = self.workers[-1]
        return last.looks if isinstance(last, Watched) else 0

    async def launch(self, instance_id: str, environment: Mapping[str, str]) -> Worker:
        socket = self.bench.directory / f"{next(_numbers)}.sock"
        forked = await self.zygote.fork(WorkerSpec(instance_id, socket))
        self.workers.append(self.worker_class(forked, socket))
        return self.workers[-1]

    def begin(self) -> Instance:
        name = f"i{next(_numbers)}"
        spec = InstanceSpec(name, "m", str(self.model), self.engine, KV_BYTES)
        instance = Instance(spec, CLOCK, lambda _: None, PATIENCE)
        devices = PoolDevice(self.bench.store, KV_BYTES)
        instance.begin(self.bench.store, devices, self.launch, early=True)
        return instance

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Instance]:
        """An instance that is READY."""
        instance = self.begin()
        async for _ in instance.follow_start():
            pass
        yield instance
        await instance.stop(0.0)

    async def manifest(self) -> Manifest:
        pack = self.engine.pack
        lease = await self.bench.store.promote(str(self.model), None, Tier.SSD, pack=pack)
        lease.release()
        return lease.manifest

    async def evict(self) -> None:
        """Out of the pool, if it is there."""
        with suppress(errors.CheckpointNotFound):
            await self.bench.store.evict((await self.manifest()).digest, Tier.DRAM)

    async def has_nothing_left(self) -> None:
        """Fails if anything is leased or reserved for long."""

        def nothing() -> bool:
            (dram,) = (one for one in self.bench.store.usage() if one.tier is Tier.DRAM)
            copies = self.bench.store.copies()
            sizes = (copy.size_bytes for copy in copies if copy.tier is Tier.DRAM)
            held = sum(-(-size // CHUNK) * CHUNK for size in sizes)
            counted = dram.used_bytes == self.bench.pool.used_bytes
            return counted and held == dram.used_bytes and not any(copy.leased for copy in copies)

        await assert_eventually(nothing, SECONDS)
        self.bench.store.check_integrity()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Bench, Zygote]]:
    """A store, and what forks workers over its pool."""
    bench = Bench(tmp_path_factory.mktemp("node"))
    await bench.open(ssd_models=400, pool_models=150)  # of the smallest; they hold a few real ones
    zygote = Zygote("transformers")
    zygote.start(bench.pool.fd)
    yield bench, zygote
    await zygote.close()
    await bench.close()


@pytest_asyncio.fixture(loop_scope="module")
async def node(shared: tuple[Bench, Zygote], disk: Disk, tmp_path: Path) -> AsyncIterator[Node]:
    """One on whose SSD a model is that has run once."""
    bench, zygote = shared
    make_model("tiny-gpt2", tmp_path / "gpt2", seed=next(_numbers))
    node = Node(bench, zygote, tmp_path / "gpt2")
    await run_once(node)
    yield node
    disk.give_all()


async def run_once(node: Node) -> None:
    """Brings a model to SSD, and has it be seen how that uses its weights."""
    async with node.running() as instance:
        assert instance.arriving is None
        node.tokens, _ = await answer(generation(instance))
        digest = instance.running.digest if instance.running else ""
        await assert_eventually(lambda: not node.bench.store.first_uses.is_lacking(digest))
    await node.bench.store.evict(digest, Tier.DRAM)


def generation(instance: Instance) -> Generation:
    request = pb.GenerateRequest(
        request_id=f"r{next(_numbers)}",
        text="Once upon a time",
        max_tokens=8,
        sampling=pb_types.SamplingParams(temperature=0),
    )
    awaited = instance.arriving
    return Generation(request, instance.ready_worker(), "n", CLOCK, arriving=awaited)


async def answer(made: Generation) -> Answer:
    tokens: list[int] = []
    phases: Sequence[pb_types.Phase] = ()
    async for event in made.events(object()):
        tokens += event.tokens.token_ids
        if event.HasField("finished"):
            phases = event.finished.receipt.phases
    return tokens, list(phases)


async def chunk_count(node: Node) -> int:
    return sum(entry.chunk_count for entry in (await node.manifest()).partitions)


@asynccontextmanager
async def early(node: Node, disk: Disk) -> AsyncIterator[tuple[Instance, asyncio.Task[Answer]]]:
    """An instance and a request that it has begun, while the last chunk is withheld."""
    count = await chunk_count(node)
    disk.give(count - 1)
    async with node.running() as instance:
        answering = asyncio.create_task(answer(generation(instance)))
        worker = node.workers[-1]

        async def is_under_way() -> bool:
            return bool(await Worker.steps(worker, 5.0)) and len(disk.asked) == count

        await assert_eventually(is_under_way, SECONDS)
        assert not answering.done()
        yield instance, answering


async def is_mended(node: Node, disk: Disk) -> None:
    """Makes sure that nothing is left of an instance, and that the next one serves."""
    disk.give_all()
    await node.has_nothing_left()
    async with node.running() as instance:
        tokens, _ = await answer(generation(instance))
        assert tokens == node.tokens
    await node.has_nothing_left()


async def test_an_answer_begins_before_the_last_chunk_is_there(node: Node, disk: Disk) -> None:
    size = (await node.manifest()).size_bytes
    async with early(node, disk) as (instance, answering):
        assert instance.arriving
        assert node.looks == 0, "a step that waits for weights is no sign of a worker that hangs"
        disk.give_all()
        tokens, phases = await asyncio.wait_for(answering, SECONDS)
        assert tokens == node.tokens
        assert [one.kind for one in phases] == [pb_types.PHASE_KIND_READ_SSD, PREFILL]
        (before,) = (one for one in instance.timeline.phases if one.kind is PhaseKind.READ_SSD)
        assert (before.size_bytes or 0) + phases[0].size_bytes == size
        await assert_eventually(lambda: instance.arriving and instance.arriving.is_whole)
        tokens, phases = await answer(generation(instance))
        assert tokens == node.tokens
        assert [one.kind for one in phases] == [PREFILL]
    await node.has_nothing_left()


async def test_chunks_are_read_in_the_order_of_their_use(node: Node, disk: Disk) -> None:
    """As they lie the positions come first, which gpt2 looks up after the words."""
    manifest = await node.manifest()
    disk.give_all()
    disk.asked.clear()
    async with node.running():
        words = next(one for one in manifest.tensors if one.name == "transformer.wte.weight")
    assert disk.asked[0] == words.offset // CHUNK * CHUNK
    assert sorted(disk.asked) == list(range(0, manifest.size_bytes, CHUNK))


async def test_nothing_is_computed_of_a_corrupt_chunk(node: Node, disk: Disk) -> None:
    digest = (await node.manifest()).digest
    async with early(node, disk) as (instance, answering):
        partition = node.bench.directory / "tier" / digest / "partition-00000.bin"
        flip_bit(partition, disk.asked[-1] + 1)
        disk.give_all()
        with pytest.raises(errors.WorkerDied, match="lost weights that were on their way"):
            await asyncio.wait_for(answering, SECONDS)
        await assert_eventually(lambda: instance.state is InstanceState.GONE, SECONDS)
        assert isinstance(instance.error, errors.WorkerDied)
    await is_mended(node, disk)


async def test_a_source_that_changes_meanwhile_is_not_served(node: Node, disk: Disk) -> None:
    """Read where it lies: each chunk is as it was, and yet they may be of two states of it."""
    node.engine = replace(ENGINE, pack=False)
    node.model = Path(shutil.copytree(node.model, node.model.with_name("in-place")))
    await run_once(node)
    async with early(node, disk) as (_, answering):
        os.utime(node.model / "model.safetensors")
        disk.give_all()
        with pytest.raises(errors.WorkerDied, match="changed"):
            await asyncio.wait_for(answering, SECONDS)
    await is_mended(node, disk)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
async def test_a_worker_that_dies_meanwhile_leaves_nothing(
    node: Node, disk: Disk, number: signal.Signals
) -> None:
    """One that has touched what was not there does not begin early again."""
    async with early(node, disk) as (instance, answering):
        node.workers[-1].process.send(number)
        with pytest.raises(errors.WorkerDied):
            await asyncio.wait_for(answering, SECONDS)
        disk.give_all()
    await node.has_nothing_left()
    await node.evict()
    disk.give(await chunk_count(node) - 1)
    instance = node.begin()
    if number is signal.SIGKILL:
        await assert_eventually(lambda: instance.state is InstanceState.READY, SECONDS)
    else:
        await assert_eventually(lambda: instance.timeline.prepare_seconds, SECONDS)
        assert instance.state is InstanceState.STARTING
    disk.give_all()
    await assert_eventually(lambda: instance.state is InstanceState.READY, SECONDS)
    assert (instance.arriving is not None) == (number is signal.SIGKILL)
    await instance.stop(0.0)
    await is_mended(node, disk)


async def test_an_instance_that_is_stopped_meanwhile_leaves_nothing(node: Node, disk: Disk) -> None:
    async with early(node, disk) as (instance, answering):
        await instance.stop(0.0)
        with pytest.raises(errors.ShuttingDown):
            await asyncio.wait_for(answering, SECONDS)
    await is_mended(node, disk)


async def test_who_joins_a_read_waits_for_its_end(node: Node, disk: Disk) -> None:
    """And has what it has waited for, whatever becomes of the one that it has joined."""
    async with early(node, disk) as (_, answering):
        joined = node.begin()
        await assert_eventually(lambda: joined.timeline.prepare_seconds, SECONDS)
        node.workers[-2].process.send(signal.SIGKILL)
        with pytest.raises(errors.WorkerDied):
            await asyncio.wait_for(answering, SECONDS)
        assert joined.state is InstanceState.STARTING
        disk.give_all()
        await assert_eventually(lambda: joined.state is InstanceState.READY, SECONDS)
        assert joined.arriving is None
        tokens, _ = await answer(generation(joined))
        assert tokens == node.tokens
        await joined.stop(0.0)
    await is_mended(node, disk)


@pytest.mark.parametrize("is_long_ago", [False, True])
async def test_a_fault_is_one_of_weights_that_were_lacking_although_they_came_since(
    node: Node, disk: Disk, monkeypatch: pytest.MonkeyPatch, is_long_ago: bool
) -> None:
    """A worker's end is known here some time after it; much later it has another reason."""
    if is_long_ago:
        monkeypatch.setattr(arriving, "END_SECONDS", 0.0)
    async with early(node, disk) as (instance, answering):
        disk.give_all()
        await asyncio.wait_for(answering, SECONDS)
        await assert_eventually(lambda: instance.arriving and instance.arriving.is_whole)
        node.workers[-1].process.send(signal.SIGSEGV)
        await assert_eventually(lambda: instance.state is InstanceState.GONE, SECONDS)
    await node.evict()
    if not is_long_ago:
        await starts_when_all_is_there(node, disk)
        return
    async with early(node, disk) as (_, answering):
        disk.give_all()
        await asyncio.wait_for(answering, SECONDS)
    await node.has_nothing_left()


async def test_a_worker_that_died_is_the_reason_whatever_else_fails(node: Node, disk: Disk) -> None:
    """Its fault cannot be noted: what would be written has a directory's name."""
    taken = node.bench.directory / "tier" / (await node.manifest()).digest / ".first-use.new"
    taken.mkdir()
    async with early(node, disk) as (instance, answering):
        node.workers[-1].process.send(signal.SIGSEGV)
        with pytest.raises(errors.WorkerDied):
            await asyncio.wait_for(answering, SECONDS)
        await assert_eventually(lambda: instance.state is InstanceState.GONE, SECONDS)
        assert isinstance(instance.error, errors.WorkerDied)
    taken.rmdir()
    await is_mended(node, disk)


async def test_what_is_distrusted_is_not_told_anew(node: Node) -> None:
    """By an instance that began before, and runs its model for the first time now."""
    store, manifest = node.bench.store, await node.manifest()
    directory = node.bench.directory / "tier" / manifest.digest
    known = first_use.read(directory, manifest)
    assert known
    assert known != known.never_early()
    await store.first_uses.distrust(manifest.digest)
    await store.first_uses.note(manifest.digest, known)
    assert first_use.read(directory, manifest) == known.never_early()


async def test_an_engine_that_cannot_wait_starts_when_all_is_there(node: Node, disk: Disk) -> None:
    """Although its checkpoint has run on one that can."""
    node.engine = replace(ENGINE, engine="vllm")
    node.worker_class = Other
    await starts_when_all_is_there(node, disk)


class Other(Watched):
    """One of another engine's name."""

    async def prepare(self, checkpoint_dir: Path, engine: EngineSpec) -> Prepared:
        return await super().prepare(checkpoint_dir, replace(engine, engine="transformers"))


async def starts_when_all_is_there(node: Node, disk: Disk) -> None:
    disk.give(await chunk_count(node) - 1)
    instance = node.begin()
    await assert_eventually(lambda: instance.timeline.prepare_seconds, SECONDS)
    with pytest.raises(AssertionError):  # sooner than this others are attached
        await assert_eventually(lambda: instance.state is not InstanceState.STARTING, 1.0)
    disk.give_all()
    await assert_eventually(lambda: instance.state is InstanceState.READY, SECONDS)
    assert instance.arriving is None
    await instance.stop(0.0)
    await is_mended(node, disk)


class Held(Worker):
    """One that is attached only when something ends that."""

    async def attach(self, *args: Any, **named: Any) -> Attached:
        if named.get("awaited"):
            await asyncio.Event().wait()
        return await super().attach(*args, **named)


async def test_a_start_whose_read_fails_goes_on_with_all_weights(node: Node, disk: Disk) -> None:
    """Another worker gets them, once the copy is mended."""
    digest = (await node.manifest()).digest
    node.worker_class = Held
    count = await chunk_count(node)
    disk.give(count - 1)
    instance = node.begin()
    await assert_eventually(lambda: len(disk.asked) == count, SECONDS)
    flip_bit(node.bench.directory / "tier" / digest / "partition-00000.bin", disk.asked[-1] + 1)
    await assert_eventually(lambda: instance.timeline.prepare_seconds, SECONDS)
    disk.give_all()
    await assert_eventually(lambda: instance.state is InstanceState.READY, SECONDS)
    assert instance.arriving is None
    tokens, _ = await answer(generation(instance))
    assert tokens == node.tokens
    await instance.stop(0.0)
    await node.has_nothing_left()
