"""The agent's end of kept pages; a worker's own end is at the other, over a cache that is none."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from serverlessllm.v1 import worker_service_pb2
from serverlessllm.v1.worker_service_pb2_grpc import add_WorkerServiceServicer_to_server

from sllm import rpc
from sllm.node.instances.page_keeping import WorkersPages
from sllm.node.instances.worker_client import Worker
from sllm.node.worker.engine.pages import PageLayout, Prefix
from sllm.node.worker.host import ModelHost
from sllm.node.worker.page_keeping import PageKeeping
from sllm.node.worker.page_keys import page_keys, space_key
from sllm.node.worker.service import WorkerServicer
from tests.node.kept.test_kept_pages import PAGE_BYTES, KeptBench
from tests.node.worker.test_page_keeping import PROMPT, Pages
from tests.support import assert_eventually

LAYOUT = PageLayout("an engine", 4, PAGE_BYTES)
CONTENT = {number: bytes([number + 1]) * PAGE_BYTES for number in range(3)}


class Host:
    """A worker's model, of which one request is under way."""

    def __init__(self, pool_fd: int) -> None:
        self.pages = Pages()
        self.pages.layout = LAYOUT
        self.pages.seconds_per_token = 0.25
        self.pages.there = dict(CONTENT)
        self._pool_fd = pool_fd
        self._running = {"r": Prefix(PROMPT)}
        self.computes_all = asyncio.Event()
        """Whether no layers are computed by others."""
        self.computes_all.set()
        self.weights_use = SimpleNamespace(until_own=self.computes_all.wait)

    def keep_pages(self, scope: str, *, int8: bool) -> PageKeeping:
        assert not int8
        return PageKeeping(self.pages, self._pool_fd, scope, self._running.get)

    def stop_keeping(self, keeping: PageKeeping) -> None:
        keeping.close()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[KeptBench]:
    bench = KeptBench(tmp_path)
    await bench.open()
    yield bench
    await bench.close()


@pytest.fixture
async def host(bench: KeptBench) -> Host:
    return Host(bench.pool.fd)


@pytest.fixture
async def worker(host: Host) -> AsyncIterator[Any]:
    server = rpc.Server()
    servicer = WorkerServicer(cast(ModelHost, host))
    add_WorkerServiceServicer_to_server(servicer, server.grpc)
    service = worker_service_pb2.DESCRIPTOR.services_by_name["WorkerService"]
    port = await server.start("127.0.0.1:0", [service], insecure=True)
    ended = asyncio.get_running_loop().create_future()
    async with rpc.channel(f"127.0.0.1:{port}") as channel:
        yield SimpleNamespace(channel=channel, pid=0, process=SimpleNamespace(ended=ended))
        ended.set_result(0)
    await server.stop(0.0)


async def test_pages_of_a_request_that_is_under_way_are_kept_when_they_are_asked_for(
    bench: KeptBench, worker: Any
) -> None:
    pages = WorkersPages(bench.store.pages_from_peers, cast(Worker, worker), "scope")
    await pages.begun()
    assert pages.layout
    assert pages.space == "scope, an engine"
    assert pages.seconds_per_token is None
    keys = page_keys(space_key("scope", LAYOUT), LAYOUT, Prefix(PROMPT), 3)
    both = [pages.keep_running("r", 10.0) for _ in range(2)]
    assert await asyncio.gather(*both) == [tuple(keys)] * 2
    assert pages.seconds_per_token == pytest.approx(0.25)
    lease = await bench.kept.find_all(keys)
    found = [bytes(bench.pool.view(one.chunk)[one.offset :][:PAGE_BYTES]) for one in lease.places]
    assert found == list(CONTENT.values())
    bench.kept.release(lease)
    assert await pages.keep_running("another", 10.0) == ()
    await pages.finish()
    await pages.end()
    assert await pages.keep_running("r", 10.0) == (), "nobody answers any more"


async def test_nobody_waits_for_pages_while_others_compute_layers(
    bench: KeptBench, host: Host, worker: Any
) -> None:
    host.computes_all.clear()
    pages = WorkersPages(bench.store.pages_from_peers, cast(Worker, worker), "scope")
    assert await pages.keep_running("r", 60.0) == ()
    await pages.finish()  # so does one that is to end
    assert pages.layout is None
    host.computes_all.set()
    await assert_eventually(lambda: pages.layout)
    assert len(await pages.keep_running("r", 10.0)) == 3
    await pages.finish()
    await pages.end()
