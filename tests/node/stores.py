"""A tier store over small tiers, and ways to hold its transfers up."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sllm.checkpoint.remote.options import RemoteOptions
from sllm.clock import MonotonicClock
from sllm.node.kept.records import NOTHING_KEPT
from sllm.node.peers.types import Network
from sllm.node.store.lease import Lease
from sllm.node.store.tier_store import TierStore
from sllm.node.tiers.pool import Pool
from sllm.node.tiers.types import Tier
from sllm.node.transfers import imports, reads
from sllm.node.transfers.work import Progress
from tests.checkpoint.checkpoints import assert_same, random_weights, tensors_in_pool, write_model
from tests.checkpoint.plans import CHUNK

MODEL_CHUNKS = 6
"""Of the pool, for one model."""
MODEL_BYTES = 50_000
"""On SSD, for one model; a little more than it takes."""


Tell = Callable[[Progress], None]


class Bench:
    """A store, and models to promote."""

    budget = NOTHING_KEPT
    """For pages of KV caches."""
    network: Network | None = None
    """To other nodes."""

    def __init__(self, directory: Path, remote: RemoteOptions | None = None) -> None:
        self.directory = directory
        self._remote = remote
        self.store: TierStore
        self.pool: Pool

    async def open(self, ssd_models: float = 8, pool_models: float = 8) -> TierStore:
        """Opens a store whose tiers have room for so many models."""
        self.pool = Pool(int(pool_models * MODEL_CHUNKS * CHUNK), CHUNK)
        self.store = await TierStore.open(
            self.directory / "tier",
            int(ssd_models * MODEL_BYTES),
            self.pool,
            clock=MonotonicClock(),
            remote=self._remote,
            network=self.network,
            kept=self.budget,
        )
        return self.store

    async def close(self) -> None:
        """Closes the store, and checks that all is in order to the last."""
        await self.store.close()
        self.store.check_integrity()
        self.pool.close()

    async def reopen(self, ssd_models: float = 8, pool_models: float = 8) -> None:
        """As another process would find the directory."""
        await self.close()
        await self.open(ssd_models, pool_models)

    def model(self, seed: int) -> str:
        """The source of a model, made if it is not there."""
        directory = self.directory / f"model{seed}"
        if not directory.exists():
            write_model(directory, seed=seed)
        return str(directory)

    async def promote(self, seed: int, tier: Tier, tell: Tell = lambda _: None) -> Lease:
        """Promotes a model, and checks the store's books and the model's bytes."""
        lease = await self.store.promote(self.model(seed), None, tier, tell, pack=True)
        self.store.check_integrity()
        if tier is Tier.DRAM:
            found = tensors_in_pool(lease.manifest, self.pool, lease.chunks)
            assert_same(found, random_weights(seed))
        return lease

    async def leave(self, seed: int, tier: Tier) -> str:
        """Promotes a model and lets go of it; returns its digest."""
        lease = await self.promote(seed, tier)
        lease.release()
        self.store.check_integrity()
        return lease.digest

    def on(self, tier: Tier) -> set[str]:
        """Digests of the whole copies on a tier."""
        return {
            copy.digest
            for copy in self.store.copies()
            if copy.tier is tier and copy.resident_bytes == copy.size_bytes
        }


class Gate:
    """Holds transfers up before they begin, and counts them."""

    def __init__(self) -> None:
        self.begun = 0
        self.when_held: Callable[[], object] = lambda: None
        """Done at the gate, after it was opened."""
        self._open = threading.Event()

    def hold(self, transfer: Callable[..., Any]) -> Callable[..., Any]:
        """`transfer`, once the gate is open."""

        def held(*args: object, **named: object) -> object:
            self.begun += 1
            assert self._open.wait(60), "nobody opened the gate"
            self.when_held()
            return transfer(*args, **named)

        return held

    def open(self) -> None:
        """Lets every transfer go on."""
        self._open.set()


@contextmanager
def gate_on(name: str) -> Iterator[Gate]:
    """A gate before "imports" or "reads"."""
    gate = Gate()
    module, function = {
        "imports": (imports, "import_checkpoint"),
        "reads": (reads, "open_reads"),
    }[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, function, gate.hold(getattr(module, function)))
        try:
            yield gate
        finally:
            gate.open()


async def settle() -> None:
    """Lets tasks that can run do so."""
    for _ in range(20):
        await asyncio.sleep(0)
