"""Checkpoints that come over the network, into real tiers, from real servers on loopback."""

import asyncio
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import torch
from aiohttp import web

from sllm.checkpoint.format.manifest_file import read_manifest
from sllm.errors import ShuttingDown, SourceNotFound, SourceUnavailable
from sllm.node.store.lease import Lease
from sllm.node.tiers.types import Tier
from sllm.node.transfers import sources
from sllm.node.transfers.work import Progress
from tests.checkpoint.checkpoints import (
    assert_same,
    import_model,
    random_weights,
    tensors_in_pool,
    tensors_on_disk,
    write_model,
)
from tests.checkpoint.remote.sources import HASTY
from tests.checkpoint.remote.web import Hit, WebServer
from tests.node.stores import Bench, settle
from tests.processes import started
from tests.support import assert_eventually, wait_until

WEIGHTS = "model.safetensors"


@pytest.fixture
def web_server(tmp_path: Path) -> Iterator[WebServer]:
    root = tmp_path / "web"
    root.mkdir()
    with WebServer(root) as server:
        yield server


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """Waits for servers no longer than a test can."""
    bench = Bench(tmp_path, HASTY)
    await bench.open()
    yield bench
    await bench.close()


@asynccontextmanager
async def held(bench: Bench, url: str, dtype: str | None, tier: Tier) -> AsyncIterator[Lease]:
    lease = await bench.store.promote(url, dtype, tier)
    try:
        yield lease
    finally:
        lease.release()


def gets(server: WebServer) -> list[Hit]:
    return [hit for hit in server.hits if hit.name == WEIGHTS and hit.method == "GET"]


async def test_one_pass_fills_pool_and_disk(bench: Bench, web_server: WebServer) -> None:
    weights = write_model(web_server.root) / WEIGHTS
    async with held(bench, web_server.url, None, Tier.DRAM) as lease:
        found = tensors_in_pool(lease.manifest, bench.pool, lease.chunks)
        assert_same(found, random_weights())
        assert_same(tensors_on_disk(lease.manifest, lease.directory), random_weights())
        assert [step.phase.name for step in lease.steps] == ["IMPORT"]
    assert web_server.asked(WEIGHTS) <= 2 * weights.stat().st_size, "beside the header, read twice"
    bench.store.check_integrity()


@pytest.mark.parametrize("packing", [1, 2])
async def test_two_who_want_it_at_once_read_it_once(
    bench: Bench, web_server: WebServer, packing: int
) -> None:
    """However they want it: what comes from elsewhere is packed for all of them."""
    write_model(web_server.root)
    packs = [number % packing == 1 for number in range(5)]
    leases = await asyncio.gather(
        *(bench.store.promote(web_server.url, None, Tier.DRAM, pack=pack) for pack in packs)
    )
    ranges = [(hit.start, hit.size) for hit in gets(web_server)]
    assert len(ranges) == len(set(ranges)), "a range was asked for twice"
    for lease in leases:
        lease.release()


async def test_the_same_model_from_three_places_is_held_once(
    bench: Bench, web_server: WebServer
) -> None:
    plain = write_model(web_server.root / "plain")
    import_model(plain, web_server.root / "packed")
    places = [str(plain), f"{web_server.url}/plain", f"{web_server.url}/packed"]
    leases = [await bench.store.promote(place, None, Tier.DRAM, pack=True) for place in places]
    assert len({lease.digest for lease in leases}) == 1
    assert len(bench.on(Tier.SSD)) == len(bench.on(Tier.DRAM)) == 1
    assert "partition-00000.bin" not in {hit.name for hit in web_server.hits if hit.method == "GET"}
    for lease in leases:
        lease.release()
    bench.store.check_integrity()


async def test_what_was_imported_outlives_its_server(bench: Bench, web_server: WebServer) -> None:
    write_model(web_server.root)
    (await bench.store.promote(web_server.url, None, Tier.SSD)).release()
    await bench.reopen()
    shutil.rmtree(web_server.root)
    async with held(bench, web_server.url, None, Tier.DRAM) as lease:
        assert_same(tensors_in_pool(lease.manifest, bench.pool, lease.chunks), random_weights())
    with pytest.raises(SourceNotFound):
        await bench.store.promote(web_server.url, "float16", Tier.DRAM)


async def test_a_server_that_says_nothing_does_not_hold_up_what_is_here(
    bench: Bench, web_server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(web_server.root)
    (await bench.store.promote(web_server.url, None, Tier.DRAM)).release()
    await bench.reopen()
    monkeypatch.setattr(sources, "PATIENCE_SECONDS", 0.1)

    async def silent(request: web.Request, hit: Hit, content: bytes) -> web.StreamResponse | None:
        await asyncio.sleep(30)
        return None

    web_server.fault = silent
    async with asyncio.timeout(20):
        (await bench.store.promote(web_server.url, None, Tier.DRAM)).release()


async def test_a_change_is_noticed_when_the_source_is_inspected(
    bench: Bench, web_server: WebServer
) -> None:
    write_model(web_server.root)
    first = await bench.store.promote(web_server.url, None, Tier.SSD)
    write_model(web_server.root, seed=1)
    assert (await bench.store.inspect(web_server.url, None)).digest is None
    second = await bench.store.promote(web_server.url, None, Tier.SSD)
    assert_same(tensors_on_disk(second.manifest, second.directory), random_weights(1))
    first.release()
    second.release()


async def test_a_fetch_that_broke_off_goes_on(bench: Bench, web_server: WebServer) -> None:
    weights = write_model(web_server.root) / WEIGHTS
    size = weights.stat().st_size

    async def fail_late(
        request: web.Request, hit: Hit, content: bytes
    ) -> web.StreamResponse | None:
        late = hit.name == WEIGHTS and hit.start > size // 2
        return web.Response(status=500) if late else None

    web_server.fault = fail_late
    with pytest.raises(SourceUnavailable):
        await bench.store.promote(web_server.url, None, Tier.DRAM)
    bench.store.check_integrity()
    ssd, dram = bench.store.usage()
    assert (ssd.used_bytes > 8000, dram.used_bytes) == (True, 0)
    web_server.fault, web_server.hits = None, []
    await bench.reopen()
    async with held(bench, web_server.url, None, Tier.DRAM) as lease:
        found = tensors_in_pool(lease.manifest, bench.pool, lease.chunks)
        assert_same(found, random_weights())
        assert_same(tensors_on_disk(lease.manifest, lease.directory), random_weights())
    again = sum(hit.size for hit in gets(web_server) if hit.start > 0)
    assert again < 0.75 * size


async def test_closing_ends_a_fetch_that_is_stalled(bench: Bench, web_server: WebServer) -> None:
    write_model(web_server.root)
    stalled = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def stall(request: web.Request, hit: Hit, content: bytes) -> web.StreamResponse | None:
        if hit.name == WEIGHTS and hit.method == "GET" and hit.start > 0:
            loop.call_soon_threadsafe(stalled.set)
            await asyncio.sleep(30)
        return None

    web_server.fault = stall
    promotion = asyncio.create_task(bench.store.promote(web_server.url, None, Tier.DRAM))
    await asyncio.wait_for(stalled.wait(), 10)
    closed = asyncio.create_task(bench.reopen())
    with pytest.raises(ShuttingDown):
        await promotion
    await asyncio.wait_for(closed, 10)


async def test_progress_of_a_fetch_is_told(bench: Bench, web_server: WebServer) -> None:
    write_model(web_server.root)
    told: list[Progress] = []
    (await bench.store.promote(web_server.url, None, Tier.DRAM, told.append)).release()
    await settle()
    assert told[-1].loaded_bytes == told[-1].total_bytes > 40_000
    assert {progress.from_tier for progress in told} == {Tier.REMOTE}


FETCH = """
import asyncio, sys
from pathlib import Path
from sllm.clock import MonotonicClock
from sllm.node.tiers.pool import Pool
from sllm.node.store.tier_store import TierStore
from sllm.node.tiers.types import Tier

async def main(url, directory):
    pool = Pool(128 * 65536, 65536)
    store = await TierStore.open(
        Path(directory), 64 << 20, pool, clock=MonotonicClock(), fetch_threads=2
    )
    lease = await store.promote(url, None, Tier.DRAM)
    print(lease.directory, flush=True)
    lease.release()
    await store.close()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("seed", [1, 2])
def test_a_fetch_that_is_killed_goes_on_and_fetches_nothing_twice(
    web_server: WebServer, tmp_path: Path, seed: int
) -> None:
    weights = {f"t.{i}": torch.randn(50_000 + i, generator=torch.manual_seed(i)) for i in range(20)}
    size = (write_model(web_server.root, weights) / WEIGHTS).stat().st_size

    async def slowly(request: web.Request, hit: Hit, content: bytes) -> web.StreamResponse | None:
        await asyncio.sleep(0.02 if hit.start else 0.0)
        return None

    web_server.fault = slowly
    command = [sys.executable, "-c", FETCH, web_server.url, str(tmp_path / "tier")]
    kills = 4
    for share in sorted(random.Random(seed).uniform(0.05, 0.9) for _ in range(kills)):
        with started(command) as process:
            await_bytes(web_server, share * size, more_than=len(gets(web_server)) + 3)
            process.send_signal(signal.SIGKILL)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=100, check=True)
    directory = Path(done.stdout.splitlines()[-1])
    assert_same(tensors_on_disk(read_manifest(directory), directory), weights)
    in_hand = 2 * 65536
    assert fetched(web_server) <= size + kills * 2 * in_hand
    assert {path.name for path in directory.parent.iterdir()} == {".lock", directory.name}


def await_bytes(server: WebServer, size: float, more_than: int) -> None:
    wait_until(lambda: fetched(server) > size and len(gets(server)) > more_than, timeout=60)


def fetched(server: WebServer) -> int:
    """Bytes that were asked for chunks; headers are asked for from the first byte on."""
    return sum(hit.size for hit in gets(server) if hit.start > 0)


PEAK = """
import asyncio, resource, sys
from pathlib import Path
from sllm.clock import MonotonicClock
from sllm.node.tiers.pool import Pool
from sllm.node.store.tier_store import TierStore
from sllm.node.tiers.types import Tier

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

async def main(url, directory):
    pool = Pool(4 << 20, 1 << 20)
    store = await TierStore.open(
        Path(directory), 1 << 30, pool, clock=MonotonicClock(), fetch_threads=4
    )
    before = peak()
    (await store.promote(url, None, Tier.SSD)).release()
    print(peak() - before)
    await store.close()

asyncio.run(main(*sys.argv[1:]))
"""


def test_memory_is_bounded_whatever_the_size(web_server: WebServer, tmp_path: Path) -> None:
    weights = {f"layers.{i}": torch.full((1 << 23,), i, dtype=torch.float32) for i in range(8)}
    size = (write_model(web_server.root, weights) / WEIGHTS).stat().st_size
    assert size > 256 << 20
    command = [sys.executable, "-c", PEAK, web_server.url, str(tmp_path / "tier")]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=150, check=True)
    assert int(done.stdout.splitlines()[-1]) < 64 << 20


async def test_many_sources_get_on_side_by_side(bench: Bench, web_server: WebServer) -> None:
    for seed in range(4):
        write_model(web_server.root / str(seed), seed=seed)
    done: list[int] = []

    async def bring(seed: int) -> None:
        async with held(bench, f"{web_server.url}/{seed}", None, Tier.SSD) as lease:
            assert_same(tensors_on_disk(lease.manifest, lease.directory), random_weights(seed))
        done.append(seed)

    await asyncio.gather(*map(bring, range(4)))
    await assert_eventually(lambda: len(bench.on(Tier.SSD)) == 4)
    assert sorted(done) == [0, 1, 2, 3]
