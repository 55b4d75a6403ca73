"""A real worker whose KV cache takes what its node has left, and gives it back."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from make_models import make_model
from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1 import types_pb2

from sllm.clock import MonotonicClock
from sllm.node.device.kv_shares import CacheSizes
from sllm.node.device.pool_device import PoolDevice
from sllm.node.instances.outputs import OutputStream
from sllm.node.instances.phases import Timeline
from sllm.node.instances.running import Running
from sllm.node.instances.spec import EngineSpec, InstanceSpec
from sllm.node.instances.start import Start
from sllm.node.instances.worker_client import Worker
from sllm.node.instances.zygote_client import WorkerSpec, Zygote
from tests.node.stores import Bench
from tests.support import assert_eventually

ENGINE = EngineSpec("transformers", None, kv_cache_tokens=256, max_concurrency=None)
GRANTED, BUDGET = 256 * 1536, 4 << 20
REQUESTS, TOKENS = 16, 100


@pytest.fixture
async def running(bench: Bench, tmp_path: Path) -> AsyncIterator[Running]:
    await bench.reopen(ssd_models=100, pool_models=100)  # of the smallest; it holds a real one
    make_model("tiny-gpt2", tmp_path / "gpt2")
    zygote, socket = Zygote("transformers"), tmp_path / "s.sock"
    zygote.start(bench.pool.fd)

    async def launch(instance_id: str, environment: Mapping[str, str]) -> Worker:
        return Worker(await zygote.fork(WorkerSpec(instance_id, socket)), socket)

    spec = InstanceSpec("i", "m", str(tmp_path / "gpt2"), ENGINE, GRANTED)
    devices, timeline = PoolDevice(bench.store, BUDGET), Timeline(MonotonicClock())
    async with AsyncExitStack() as held:
        yield await Start(spec, bench.store, devices, launch, timeline, lambda _: None).run(held)
    await zygote.close()


def submit(worker: Worker, number: int) -> OutputStream:
    request = inference_pb.GenerateRequest(
        request_id=f"r{number}",
        token_ids=types_pb2.TokenIds(ids=[1 + number, 2, 3]),
        max_tokens=TOKENS,
        ignore_eos=True,
    )
    outputs = OutputStream(request)
    worker.submit(request, outputs)
    return outputs


async def test_a_cache_takes_what_its_node_has_left_while_requests_wait(running: Running) -> None:
    share, worker = running.kv_share, running.worker
    assert share
    assert (share.bytes, running.kv_bytes) == (GRANTED, GRANTED)
    for number in range(REQUESTS):
        submit(worker, number)
    await assert_eventually(lambda: share.bytes > 2 * GRANTED)
    assert running.kv_bytes == share.bytes
    await assert_eventually(lambda: share.use.used_bytes > GRANTED)
    assert share.sizes == CacheSizes(GRANTED, share.bytes, share.use.used_bytes)
    await assert_eventually(lambda: not worker.running, timeout=60.0)
    await assert_eventually(lambda: share.bytes == GRANTED)
    assert share.sizes == CacheSizes(GRANTED, GRANTED, 0)
