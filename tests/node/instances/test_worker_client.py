"""What a worker says at its end, by whichever way it comes first; a service in its place."""

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1 import worker_service_pb2 as pb
from serverlessllm.v1.worker_service_pb2_grpc import (
    WorkerServiceServicer,
    add_WorkerServiceServicer_to_server,
)

from sllm import errors, rpc
from sllm.checkpoint.format.form import WeightForm
from sllm.checkpoint.format.manifest import Manifest
from sllm.clock import MonotonicClock
from sllm.node.device.interface import InPool
from sllm.node.device.kv_shares import CacheUse
from sllm.node.generations.work import Work
from sllm.node.instances import worker_client
from sllm.node.instances.adapter_use import AdapterSpec, AdapterUse
from sllm.node.instances.adapters import InstanceAdapters
from sllm.node.instances.forked import Exit, ForkedWorker
from sllm.node.instances.outputs import OutputStream
from sllm.node.instances.phases import Timeline
from sllm.node.instances.pidfd import ProcessHandle
from sllm.node.instances.spec import EngineSpec
from sllm.node.instances.worker_client import Worker
from tests.support import assert_eventually, tasks_beside_this

FAILURE = errors.NoCapacity("no page is left for it")
NO_WEIGHTS = Manifest(1, (), (), (), "")


class Service(WorkerServiceServicer):
    """Takes requests and attaches; what it puts out, and when it breaks, is told it."""

    def __init__(self) -> None:
        self.outputs: asyncio.Queue[pb.RequestOutput | None] = asyncio.Queue()
        """None breaks the stream."""
        self.commands: list[pb.RunRequest] = []
        self.asked = asyncio.Event()
        """Set once something is asked that is not answered."""

    async def Attach(self, request: pb.AttachRequest, context: Any) -> pb.AttachResponse:
        return pb.AttachResponse()

    async def LoadAdapter(
        self, request: pb.LoadAdapterRequest, context: Any
    ) -> pb.LoadAdapterResponse:
        return pb.LoadAdapterResponse()

    async def UnloadAdapter(
        self, request: pb.UnloadAdapterRequest, context: Any
    ) -> pb.UnloadAdapterResponse:
        return pb.UnloadAdapterResponse()

    async def MakeReady(self, request: pb.MakeReadyRequest, context: Any) -> pb.MakeReadyResponse:
        self.asked.set()
        await asyncio.Event().wait()
        return pb.MakeReadyResponse()

    async def KeepPages(
        self, requests: AsyncIterator[pb.KeepPagesRequest], context: Any
    ) -> AsyncIterator[pb.KeepPagesResponse]:
        if not isinstance(requests, AsyncIterator):
            yield pb.KeepPagesResponse()

    async def BorrowLayers(
        self, requests: AsyncIterator[pb.BorrowLayersRequest], context: Any
    ) -> AsyncIterator[pb.BorrowLayersResponse]:
        if not isinstance(requests, AsyncIterator):
            yield pb.BorrowLayersResponse()

    async def ComputeLayers(
        self, requests: AsyncIterator[pb.ComputeLayersRequest], context: Any
    ) -> AsyncIterator[pb.ComputeLayersResponse]:
        if not isinstance(requests, AsyncIterator):
            yield pb.ComputeLayersResponse()

    async def ResizeCache(
        self, request: pb.ResizeCacheRequest, context: Any
    ) -> pb.ResizeCacheResponse:
        return pb.ResizeCacheResponse(share_bytes=request.share_bytes, least_bytes=2, used_bytes=1)

    async def GetStatus(self, request: pb.GetStatusRequest, context: Any) -> pb.GetStatusResponse:
        return pb.GetStatusResponse()

    async def Prepare(self, request: pb.PrepareRequest, context: Any) -> pb.PrepareResponse:
        raise errors.Unreachable("Socket closed")  # as of a connection that ends

    async def Run(
        self, requests: AsyncIterator[pb.RunRequest], context: Any
    ) -> AsyncIterator[pb.RunResponse]:
        taking = asyncio.create_task(self._take(requests))
        while output := await self.outputs.get():
            yield pb.RunResponse(outputs=[output])
        taking.cancel()
        raise errors.Unreachable("Socket closed")

    async def _take(self, requests: AsyncIterator[pb.RunRequest]) -> None:
        async for request in requests:
            self.commands.append(request)


@pytest.fixture
def process() -> Iterator["subprocess.Popen[bytes]"]:
    """One in the place of a worker's."""
    with subprocess.Popen(["sleep", "60"]) as found:
        yield found
        found.kill()


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    service, server = Service(), rpc.Server()
    add_WorkerServiceServicer_to_server(service, server.grpc)
    await server.start(f"unix:{tmp_path}/s.sock", [])
    yield service
    await server.stop(0)


@pytest.fixture
async def forked(process: "subprocess.Popen[bytes]") -> ForkedWorker:
    return ForkedWorker(ProcessHandle(process.pid))


@pytest.fixture
async def worker(service: Service, forked: ForkedWorker, tmp_path: Path) -> AsyncIterator[Worker]:
    worker = Worker(forked, tmp_path / "s.sock")
    yield worker
    if not forked.exited.done():
        forked.exited.set_result(Exit(0))
    await worker.stop()


async def test_a_worker_tells_what_its_cache_has_and_needs(worker: Worker) -> None:
    assert await worker.resize_cache(3) == CacheUse(share_bytes=3, least_bytes=2, used_bytes=1)


async def submitted(worker: Worker, service: Service) -> OutputStream:
    """A request that the service has taken, and its outputs."""
    await worker.attach(NO_WEIGHTS, InPool((), 1), 0)
    request = inference_pb.GenerateRequest(request_id="r")
    outputs = OutputStream(request)
    worker.submit(request, outputs)
    await assert_eventually(lambda: service.commands)
    return outputs


def failed(error: errors.SllmError) -> pb.RequestOutput:
    failure = pb.Failure(code=error.code, reason=error.reason, message=error.message)
    return pb.RequestOutput(request_id="r", failure=failure)


async def test_last_words_count_although_the_end_is_told_before(
    worker: Worker, forked: ForkedWorker, service: Service
) -> None:
    outputs = await submitted(worker, service)
    forked.exited.set_result(Exit(1 << 8))
    service.outputs.put_nowait(failed(FAILURE))
    service.outputs.put_nowait(None)
    (last,) = await asyncio.wait_for(outputs.take(), 10)
    assert last.failure.message == FAILURE.message
    assert "exit status 1" in (await asyncio.wait_for(worker.gone, 10)).message


async def test_who_has_heard_no_last_words_is_told_how_it_ended(
    worker: Worker, forked: ForkedWorker, service: Service
) -> None:
    outputs = await submitted(worker, service)
    service.outputs.put_nowait(None)
    forked.exited.set_result(Exit(9))
    with pytest.raises(errors.WorkerDied, match="killed by SIGKILL"):
        await asyncio.wait_for(outputs.take(), 10)


async def test_a_call_that_breaks_off_is_told_how_the_worker_ended(
    worker: Worker, forked: ForkedWorker
) -> None:
    engine = EngineSpec("transformers", None, None, None)
    preparing = asyncio.create_task(worker.prepare(Path("/"), engine))
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_later(0.2, forked.exited.set_result, Exit(9, orphaned=True))
    with pytest.raises(errors.WorkerDied, match="zygote"):
        await preparing
    assert worker.orphaned


async def test_a_call_that_breaks_off_of_a_worker_that_lives_is_told_as_it_is(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_client, "LAST_WORDS_SECONDS", 0.1)
    with pytest.raises(errors.Unreachable, match="Socket closed"):
        await worker.prepare(Path("/"), EngineSpec("transformers", None, None, None))


async def test_a_stream_that_breaks_leaves_no_task(
    worker: Worker, forked: ForkedWorker, service: Service
) -> None:
    outputs = await submitted(worker, service)
    service.outputs.put_nowait(None)
    forked.exited.set_result(Exit(9))
    with pytest.raises(errors.WorkerDied):
        await asyncio.wait_for(outputs.take(), 10)
    await assert_eventually(lambda: not tasks_beside_this())


async def test_a_worker_that_has_broken_off_its_stream_and_lives_is_ended(
    worker: Worker,
    forked: ForkedWorker,
    service: Service,
    process: "subprocess.Popen[bytes]",
) -> None:
    await submitted(worker, service)
    service.outputs.put_nowait(None)
    await assert_eventually(lambda: process.poll() is not None, timeout=60.0)
    forked.exited.set_result(Exit(9))
    assert "broke off its stream" in str(await worker.gone)


async def test_who_waits_for_an_answer_is_told_that_the_worker_was_stopped(
    worker: Worker, forked: ForkedWorker, service: Service, tmp_path: Path
) -> None:
    place = InPool((), 1)
    asking = asyncio.create_task(
        worker.make_ready(NO_WEIGHTS, place, tmp_path, WeightForm("e-1", "e"))
    )
    await asyncio.wait_for(service.asked.wait(), 10.0)
    stopping = asyncio.create_task(worker.stop())
    with pytest.raises(errors.WorkerDied, match="stopped meanwhile"):
        await asyncio.wait_for(asking, 10.0)
    forked.exited.set_result(Exit(0))
    await stopping


class SlowAdapters:
    """Adapters that take their time."""

    def __init__(self) -> None:
        self.there = asyncio.Event()
        self.left = 0

    async def take(self, spec: AdapterSpec, give_way: object) -> AdapterUse:
        try:
            await self.there.wait()
        except asyncio.CancelledError:
            self.left += 1
            raise
        return AdapterUse("loaded", lambda: None, None)


def adapted(worker: Worker, adapters: SlowAdapters) -> tuple[Work, OutputStream]:
    """A request whose adapter is not there yet, and its outputs."""
    adapter = inference_pb.AdapterSource(deployment="legal", source="file:///a", identity="L")
    request = inference_pb.GenerateRequest(request_id="r", adapter=adapter)
    clock, outputs = MonotonicClock(), OutputStream(request)
    there = cast(InstanceAdapters, adapters)
    work = Work(request, outputs, worker, there, clock, Timeline(clock), gives_way=False)
    outputs.on_end = work.let_go
    return work, outputs


async def test_a_request_whose_adapter_is_loading_is_drained_with_the_others(
    worker: Worker, service: Service
) -> None:
    adapters = SlowAdapters()
    await worker.attach(NO_WEIGHTS, InPool((), 1), 0)
    work, _ = adapted(worker, adapters)
    draining = asyncio.create_task(worker.drain(60.0))
    adapters.there.set()
    await assert_eventually(lambda: service.commands)
    assert worker.running == 1
    assert not draining.done()
    work.release()
    await asyncio.wait_for(draining, 10)


@pytest.mark.parametrize("reason", [errors.ShuttingDown, errors.WorkerDied])
async def test_a_request_whose_adapter_is_loading_ends_with_the_worker(
    worker: Worker, forked: ForkedWorker, reason: type[errors.SllmError]
) -> None:
    adapters = SlowAdapters()
    _, outputs = adapted(worker, adapters)
    await asyncio.sleep(0)
    if reason is errors.WorkerDied:
        forked.exited.set_result(Exit(9))
    else:
        await worker.drain(0.0)
    with pytest.raises(reason):
        await asyncio.wait_for(outputs.take(), 10)
    await assert_eventually(lambda: adapters.left)
    assert not worker.running
