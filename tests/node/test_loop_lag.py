"""A load leaves the agent's event loop to others."""

from pathlib import Path

import torch

from sllm.clock import MonotonicClock
from sllm.node.store.tier_store import TierStore
from sllm.node.tiers.pool import Pool
from sllm.node.tiers.types import Tier
from tests.checkpoint.checkpoints import write_model
from tests.support import LoopLag

BOUND_SECONDS = 0.2
"""Generous: other programs share the machine. By itself it is some 15 ms."""


async def test_the_loop_turns_while_a_model_is_loaded(tmp_path: Path) -> None:
    weights = {f"model.layers.{n}.w": torch.zeros(4096, 2048) for n in range(8)}
    write_model(tmp_path / "model", weights)
    pool = Pool(512 << 20)
    store = await TierStore.open(tmp_path / "tier", 1 << 30, pool, clock=MonotonicClock())
    pool.start_populating()
    for pack in (False, True):
        async with LoopLag() as lag:
            lease = await store.promote(str(tmp_path / "model"), None, Tier.DRAM, pack=pack)
        lease.release()
        # Shown by `pytest -s`.
        print(f"pack={pack}: the loop was held up for {lag.worst * 1e3:.1f} ms")  # noqa: T201
        assert 0 < lag.worst < BOUND_SECONDS
    await store.close()
    pool.close()
