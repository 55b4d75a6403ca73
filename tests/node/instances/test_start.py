"""Starts whose workers die on the way, with their zygote or by themselves."""

import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import psutil
import pytest
from make_models import make_model

from sllm import errors
from sllm.clock import MonotonicClock
from sllm.node.device.pool_device import PoolDevice
from sllm.node.instances.forked import Exit, ForkedWorker
from sllm.node.instances.phases import Timeline
from sllm.node.instances.pidfd import ProcessHandle
from sllm.node.instances.start import WORKERS, InstanceSpec, LaunchWorker, Start
from sllm.node.instances.worker_client import EngineSpec, Worker
from sllm.node.instances.zygote_client import WorkerSpec, Zygote
from sllm.node.tiers.tier import Tier
from tests.node.stores import Bench
from tests.support import assert_eventually

ENGINE = EngineSpec("transformers", None, 256, None)
KV_BYTES = 1 << 20


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


def start_of(bench: Bench, source: Path | str, launch: LaunchWorker) -> Start:
    devices = PoolDevice(bench.store, KV_BYTES)
    spec = InstanceSpec("i", "m", str(source), ENGINE, KV_BYTES)
    return Start(spec, bench.store, devices, launch, Timeline(MonotonicClock()), lambda _: None)


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
