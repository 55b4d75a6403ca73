"""Starts whose workers die on the way, with their zygote or by themselves."""

import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from itertools import count
from pathlib import Path

import psutil
import pytest
from make_models import make_model

from sllm import errors
from sllm.checkpoint.format.layout import PARTITION_BYTES
from sllm.checkpoint.saving.saving import write_tensors
from sllm.clock import MonotonicClock
from sllm.node.device.pool_device import PoolDevice
from sllm.node.instances.forked import Exit, ForkedWorker
from sllm.node.instances.phases import Timeline
from sllm.node.instances.pidfd import ProcessHandle
from sllm.node.instances.spec import EngineSpec, InstanceSpec
from sllm.node.instances.start import WORKERS, LaunchWorker, Start
from sllm.node.instances.worker_client import Worker
from sllm.node.instances.worker_messages import Prepared
from sllm.node.instances.zygote_client import WorkerSpec, Zygote
from sllm.node.tiers.types import Tier
from sllm.node.transfers.work import Form
from tests.checkpoint.checkpoints import flip_bit, random_weights
from tests.checkpoint.plans import CHUNK
from tests.node.stores import Bench, gate_on
from tests.support import assert_eventually

ENGINE = EngineSpec("transformers", None, 256, None)
KV_BYTES = 1 << 20
FORM = Form("transformers-of-another-time")
OF_ANOTHER_MODEL = b'{"version": 1, "dtype": "float32", "packed": [], "descriptors": []}'


@pytest.fixture
async def zygote(bench: Bench) -> AsyncIterator[Zygote]:
    await bench.reopen(ssd_models=100, pool_models=100)  # of the smallest; it holds a real one
    zygote = Zygote("transformers")
    zygote.start(bench.pool.fd)
    yield zygote
    await zygote.close()


class Processes:
    """Those in the place of workers."""

    def __init__(self) -> None:
        self.all: list[subprocess.Popen[bytes]] = []

    def begin(self) -> ForkedWorker:
        self.all.append(subprocess.Popen(["sleep", "60"]))
        return ForkedWorker(ProcessHandle(self.all[-1].pid))

    def end(self) -> None:
        for process in self.all:
            process.kill()
            process.wait()


@pytest.fixture
def processes() -> Iterator[Processes]:
    processes = Processes()
    yield processes
    processes.end()


def start_of(
    bench: Bench,
    source: Path | str,
    launch: LaunchWorker,
    engine: EngineSpec = ENGINE,
    form: Form | None = None,
) -> Start:
    devices = PoolDevice(bench.store, KV_BYTES)
    spec = InstanceSpec("i", "m", str(source), engine, KV_BYTES)
    timeline = Timeline(MonotonicClock())
    return Start(spec, bench.store, devices, launch, timeline, lambda _: None, form)


async def test_a_start_whose_zygote_dies_goes_on_with_another(
    bench: Bench, zygote: Zygote, tmp_path: Path
) -> None:
    make_model("tiny-gpt2", tmp_path / "gpt2")
    socket, launched = tmp_path / "s.sock", 0

    async def launch(instance_id: str, environment: Mapping[str, str]) -> Worker:
        nonlocal launched
        launched += 1
        worker = Worker(await zygote.fork(WorkerSpec(instance_id, socket)), socket)
        if launched == 1:
            os.kill(psutil.Process(worker.pid).ppid(), signal.SIGKILL)
        return worker

    async with AsyncExitStack() as held:
        running = await start_of(bench, tmp_path / "gpt2", launch).run(held)
        assert launched == 2
        assert await running.worker.steps(10.0) == 0
        assert running.digest in bench.on(Tier.DRAM)
    assert not any(copy.leased for copy in bench.store.copies())


@pytest.mark.parametrize("description", [b"{}", None])
async def test_a_start_goes_on_from_what_is_published_if_what_was_made_ready_is_of_no_use(
    bench: Bench, zygote: Zygote, tmp_path: Path, description: bytes | None
) -> None:
    """As when its description is of something else, or it is of another model."""
    make_model("tiny-gpt2", tmp_path / "gpt2")
    files = {"ready_made.json": description or OF_ANOTHER_MODEL}
    lease = await bench.store.promote(str(tmp_path / "gpt2"), None, Tier.SSD)
    record = replace(lease.record, form=FORM.name, made_of=lease.digest)
    async with bench.store.ready_made.making(1 << 20) as directory:
        write_tensors(random_weights(5), directory, CHUNK, PARTITION_BYTES, files)
        await bench.store.ready_made.add(record, directory, 1 << 20)
    lease.release()
    sockets = (tmp_path / f"{number}.sock" for number in count())

    async def launch(instance_id: str, environment: Mapping[str, str]) -> Worker:
        socket = next(sockets)
        return Worker(await zygote.fork(WorkerSpec(instance_id, socket)), socket)

    async with AsyncExitStack() as held:
        running = await start_of(bench, tmp_path / "gpt2", launch, form=FORM).run(held)
        assert (running.digest, running.ready_made) == (record.made_of, False)
        assert await running.worker.steps(10.0) == 0
    assert bench.store.ready_made.is_lacking(record)
    assert not any(copy.leased for copy in bench.store.copies())


class Slow(Worker):
    """A worker that looks for the small files while the copy they lie in is replaced."""

    def __init__(
        self, forked: ForkedWorker, socket: Path, begin_to_read: Callable[[], None]
    ) -> None:
        super().__init__(forked, socket)
        self._begin_to_read = begin_to_read
        self.looked_in: list[Path] = []

    async def prepare(self, directory: Path, engine: EngineSpec) -> Prepared:
        """What it has read; at first that it is not there, although another copy is by then."""
        self.looked_in.append(directory)
        if len(self.looked_in) > 1:
            return await super().prepare(directory, engine)
        before = _changed_at(directory)
        self._begin_to_read()
        await assert_eventually(lambda: _changed_at(directory) not in (None, before), timeout=60.0)
        return await super().prepare(directory / "gone", engine)


def _changed_at(directory: Path) -> int | None:
    """Nanoseconds. None: there is none."""
    return directory.stat().st_ctime_ns if directory.exists() else None


async def test_a_copy_that_is_set_aside_while_its_small_files_are_read_costs_no_start(
    bench: Bench, zygote: Zygote, tmp_path: Path
) -> None:
    make_model("tiny-gpt2", tmp_path / "gpt2")
    socket = tmp_path / "s.sock"
    workers: list[Slow] = []
    lease = await bench.store.promote(str(tmp_path / "gpt2"), None, Tier.SSD, pack=True)
    lease.release()
    flip_bit(lease.directory / "partition-00000.bin", 20_000)

    async def launch(instance_id: str, environment: Mapping[str, str]) -> Worker:
        forked = await zygote.fork(WorkerSpec(instance_id, socket))
        workers.append(Slow(forked, socket, gate.open))
        return workers[-1]

    packed = replace(ENGINE, pack=True)
    async with AsyncExitStack() as held:
        gate = held.enter_context(gate_on("reads"))
        running = await start_of(bench, tmp_path / "gpt2", launch, packed).run(held)
        assert running.digest == lease.digest
    (worker,) = workers
    assert worker.looked_in == [lease.directory] * 2


@pytest.mark.parametrize(("end", "launches"), [(Exit(9, orphaned=True), WORKERS), (Exit(9), 1)])
async def test_a_start_is_not_tried_for_ever(
    bench: Bench, processes: Processes, tmp_path: Path, end: Exit, launches: int
) -> None:
    async def launch(instance_id: str, environment: Mapping[str, str]) -> Worker:
        forked = processes.begin()
        forked.exited.set_result(end)
        return Worker(forked, tmp_path / "s.sock")

    async with AsyncExitStack() as held:
        with pytest.raises(errors.WorkerDied):
            await start_of(bench, bench.model(0), launch).run(held)
    assert len(processes.all) == launches
    await assert_eventually(lambda: not any(copy.leased for copy in bench.store.copies()))
