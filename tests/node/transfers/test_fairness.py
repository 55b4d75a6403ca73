"""Ten loads at once: each gets its share, and those that a request waits for go first."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import torch

from sllm.checkpoint.files.direct_io import DirectFile
from sllm.checkpoint.importing.chunk_filler import ChunkFiller
from sllm.checkpoint.importing.chunk_plan import ChunkPlan
from sllm.clock import MonotonicClock
from sllm.node.store.tier_store import TierStore
from sllm.node.tiers.pool import Pool
from sllm.node.tiers.types import Tier
from sllm.node.transfers.work import Priority, Progress
from tests.checkpoint.checkpoints import write_model
from tests.checkpoint.plans import CHUNK
from tests.node.stores import Tell
from tests.support import assert_eventually

LOADS = 10
CHUNKS = 24
"""Of each checkpoint."""
IN_FLIGHT = 4


@asynccontextmanager
async def a_store(directory: Path, fetch_threads: int = 8) -> AsyncIterator[TierStore]:
    pool = Pool(LOADS * (CHUNKS + 2) * CHUNK, CHUNK)
    store = await TierStore.open(
        directory / "tier",
        1 << 30,
        pool,
        clock=MonotonicClock(),
        read_threads=IN_FLIGHT,
        fetch_threads=fetch_threads,
    )
    try:
        yield store
    finally:
        await store.close()
        pool.close()


def sources(directory: Path) -> list[str]:
    found = []
    for number in range(LOADS):
        weights = torch.full((CHUNKS * CHUNK - 64,), number, dtype=torch.uint8)
        found.append(str(write_model(directory / f"model{number}", {"w.1": weights})))
    return found


@contextmanager
def reads_held() -> Iterator[threading.Event]:
    """Holds every read up until the event is set."""
    go_on = threading.Event()
    read_into = DirectFile.read_into

    def held(file: DirectFile, memory: memoryview, offset: int, size: int) -> None:
        assert go_on.wait(20), "nobody let the disk go on"
        read_into(file, memory, offset, size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DirectFile, "read_into", held)
        try:
            yield go_on
        finally:
            go_on.set()


async def test_ten_loads_of_ten_checkpoints_share_the_disk_evenly(tmp_path: Path) -> None:
    loaded = [0] * LOADS
    at_first_end: list[int] = []

    def listen(number: int) -> Tell:
        def tell(progress: Progress) -> None:
            loaded[number] = progress.loaded_bytes
            if progress.loaded_bytes == progress.total_bytes and not at_first_end:
                at_first_end.extend(loaded)

        return tell

    async with a_store(tmp_path) as store:
        urls = sources(tmp_path)
        for url in urls:
            (await store.promote(url, None, Tier.SSD)).release()
        with reads_held() as go_on:
            loads = [
                asyncio.create_task(store.promote(url, None, Tier.DRAM, listen(number)))
                for number, url in enumerate(urls)
            ]
            await assert_eventually(lambda: len(store._reads._queue._jobs) == LOADS)
            go_on.set()
            leases = await asyncio.gather(*loads)
        for lease in leases:
            lease.release()
    # What was in hand when the last one came, at either end of the load.
    assert min(at_first_end) >= (CHUNKS - 2 * IN_FLIGHT) * CHUNK


async def test_fetches_that_a_request_waits_for_go_first(tmp_path: Path) -> None:
    turns: list[str] = []
    go_on = threading.Event()
    bring = ChunkFiller.bring

    def held(filler: ChunkFiller, chunk: ChunkPlan) -> str:
        turns.append(filler.url)
        assert go_on.wait(20), "nobody let the fetches go on"
        return bring(filler, chunk)

    async with a_store(tmp_path, fetch_threads=1) as store:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ChunkFiller, "bring", held)
            begun = [
                asyncio.create_task(
                    store.promote(url, None, Tier.SSD, priority=priority, pack=True)
                )
                for url, priority in zip(
                    sources(tmp_path)[:3],
                    [Priority.PREFETCH, Priority.PREFETCH, Priority.DEMAND],
                    strict=True,
                )
            ]
            await assert_eventually(lambda: len(store._imports._workers._jobs) == len(begun))
            go_on.set()
            for lease in await asyncio.gather(*begun):
                lease.release()
    demanded = (tmp_path / "model2").as_uri()
    first, last = turns.index(demanded), len(turns) - turns[::-1].index(demanded)
    assert first <= 1, "only what was in hand already went before it"
    assert set(turns[first:last]) == {demanded}
    assert {turns.count(url) for url in turns} == {CHUNKS}
