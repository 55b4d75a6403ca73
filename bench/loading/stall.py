"""How long loads hold up the event loop of a node's agent."""

import asyncio
import shutil
import time

import uvloop

from bench.disk import drop_from_page_cache
from bench.loading.models import CHUNK_BYTES, SSD_BYTES, Model
from sllm.clock import MonotonicClock
from sllm.node.store.tier_store import TierStore
from sllm.node.tiers.pool import Pool
from sllm.node.tiers.types import Tier

PROBE_SECONDS = 0.001
SETTLE_SECONDS = 0.1


def measure_stalls(model: Model) -> dict[str, float]:
    """For each kind of load, the longest time in which nothing else had its turn.

    The loop is the one that the agent runs on. Memory is taken in the background meanwhile, as it
    is when a node has just started.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_measure(model))


async def _measure(model: Model) -> dict[str, float]:
    files = [*model.partitions, *model.safetensors]
    found: dict[str, float] = {}
    for kind, directory, pack in (
        ("from SSD", model.store, True),
        ("in place", model.plain_store, False),
        ("import", model.store.with_name("import-store"), True),
    ):
        pool = Pool((2 + model.size_bytes // CHUNK_BYTES) * CHUNK_BYTES, CHUNK_BYTES)
        store = await TierStore.open(directory, SSD_BYTES, pool, clock=MonotonicClock())
        drop_from_page_cache(files)
        watch = asyncio.create_task(_watch(found, kind))
        await asyncio.sleep(SETTLE_SECONDS)
        pool.start_populating()
        (await store.promote(str(model.source), None, Tier.DRAM, pack=pack)).release()
        watch.cancel()
        await store.close()
        pool.close()
    shutil.rmtree(model.store.with_name("import-store"))
    return found


async def _watch(found: dict[str, float], kind: str) -> None:
    found[kind] = 0.0
    while True:
        before = time.perf_counter()
        await asyncio.sleep(PROBE_SECONDS)
        late = time.perf_counter() - before - PROBE_SECONDS
        found[kind] = max(found[kind], late)
