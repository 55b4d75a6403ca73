"""Weights are given back when the process that may read them has gone, and not before."""

import asyncio
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from sllm.clock import MonotonicClock
from sllm.errors import CheckpointLeased
from sllm.node.instances import worker_client
from sllm.node.instances.forked import Exit, ForkedWorker
from sllm.node.instances.phases import Timeline
from sllm.node.instances.pidfd import ProcessHandle
from sllm.node.instances.spec import EngineSpec, InstanceSpec
from sllm.node.instances.start import Start
from sllm.node.instances.worker_client import Worker
from tests.node.device.machine import KV_BYTES, Machine
from tests.processes import started
from tests.support import assert_eventually


@pytest.fixture
def process() -> Iterator[subprocess.Popen[str]]:
    """One that minds no SIGTERM, in the place of a worker."""
    with started(["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done"]) as found:
        assert found.stdout
        assert found.stdout.readline() == "ready\n"
        yield found


def forked(process: subprocess.Popen[str]) -> ForkedWorker:
    """A process in the place of a worker."""
    return ForkedWorker(ProcessHandle(process.pid))


async def test_a_worker_has_stopped_when_its_process_is_gone_whatever_is_told(
    process: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_client, "STOP_TIMEOUT", 0.2)
    found = forked(process)
    worker = Worker(found, tmp_path / "s.sock")
    found.exited.set_result(Exit(signal.SIGKILL, orphaned=True))  # as when the zygote is lost
    await worker.stop()
    assert worker.process.ended.done()
    assert process.wait(0) == -signal.SIGKILL


async def test_a_process_that_has_gone_long_ago_has_ended(
    process: subprocess.Popen[str],
) -> None:
    process.kill()
    process.wait()
    found = ProcessHandle(process.pid)
    await asyncio.wait_for(found.ended, 10)
    found.send(signal.SIGKILL)


async def test_what_a_process_reads_stays_until_it_is_gone(
    process: subprocess.Popen[str],
    machine: Machine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As if the kernel needed long to end it, as it may for one that uses a device."""
    for name in ("STOP_TIMEOUT", "KILL_TIMEOUT"):
        monkeypatch.setattr(worker_client, name, 0.05)
    monkeypatch.setattr(ProcessHandle, "send", lambda *_: None)

    async def launch(instance_id: str, environment: Mapping[str, str]) -> Worker:
        return Worker(forked(process), tmp_path / "s.sock")

    engine = EngineSpec("transformers", None, None, None)
    spec = InstanceSpec("i", "m", machine.bench.model(0), engine, KV_BYTES)
    clock = MonotonicClock()
    start = Start(spec, machine.bench.store, machine.devices, launch, Timeline(clock), _ignore)
    async with AsyncExitStack() as held:
        starting = asyncio.create_task(start.run(held))
        await assert_eventually(lambda: machine.on_device)
        (digest,) = machine.on_device
        starting.cancel()
        await asyncio.wait([starting])
    with pytest.raises(CheckpointLeased):
        await machine.devices.evict(digest)
    assert machine.devices.infos()[0].kv_used_bytes == KV_BYTES
    process.kill()
    await assert_eventually(lambda: machine.devices.infos()[0].kv_used_bytes == 0)
    await machine.devices.evict(digest)


def _ignore(_: object) -> None:
    return None
