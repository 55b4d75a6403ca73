"""The tier store: every byte of weights on a node, on SSD and in memory."""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

import structlog

from sllm.checkpoint.format.manifest import TensorEntry, corrupt
from sllm.checkpoint.importing.import_plan import plan_import
from sllm.checkpoint.remote.options import RemoteOptions
from sllm.checkpoint.remote.remotes import Remotes
from sllm.checkpoint.sources.sources import parse_source
from sllm.clock import Clock
from sllm.errors import (
    CheckpointCorrupt,
    CheckpointUnreadable,
    InvalidArgument,
    ModelTooLarge,
    NoCapacity,
)
from sllm.node.store import contents
from sllm.node.store.lease import Lease
from sllm.node.store.promoter import Promoter
from sllm.node.store.ready_made import ReadyMade
from sllm.node.store.removal import Removal
from sllm.node.tiers.checkpoints import Checkpoint, SourceRecord
from sllm.node.tiers.dram import DramTier
from sllm.node.tiers.ledger import Holding
from sllm.node.tiers.pool import Pool
from sllm.node.tiers.ssd import SsdTier
from sllm.node.tiers.types import Copy, Link, Tier, TierUsage
from sllm.node.transfers.imports import Imports
from sllm.node.transfers.loads import Tell, Threads
from sllm.node.transfers.reads import Reads
from sllm.node.transfers.sources import FoundSource, Place, Sources
from sllm.node.transfers.speeds import Reloads, Speeds, measure
from sllm.node.transfers.work import Form, Found, Priority, Sink, Step, Wish

_log = structlog.get_logger()

_SOURCE_THREADS = 32
"""Sources that can be looked at or imported at once; their bytes come through fewer threads."""


class TierStore:
    """Owns a directory and a pool, and moves checkpoints between them and their sources.

        store = await TierStore.open(directory, 64 << 30, pool, clock=MonotonicClock())
        lease = await store.promote("hf://Qwen/Qwen2.5-0.5B", "bfloat16", Tier.DRAM)
        lease.chunks  # where the weights are in the pool, for as long as the lease lasts
        lease.release()
        await store.close()

    Belongs to one event loop. Disk and digests are left to threads; the store's own state
    changes only in the loop, and never across an await, so it needs no locks.
    """

    def __init__(
        self,
        ssd: SsdTier,
        dram: DramTier,
        speeds: Speeds,
        clock: Clock,
        read_threads: int,
        fetch_threads: int,
        remote: RemoteOptions,
    ) -> None:
        self._ssd = ssd
        self._dram = dram
        self._speeds = speeds
        self.reloads = Reloads(ssd, dram, speeds)
        """What bringing checkpoints back to a tier would take."""
        ssd.ledger.reload_seconds = self.reloads.to_ssd
        dram.ledger.reload_seconds = self.reloads.to_dram
        self._threads = Threads()
        self._import_threads = Threads(_SOURCE_THREADS)
        self._sources = Sources(self._import_threads, Remotes(remote), ssd.directory, clock)
        self._imports = Imports(
            ssd,
            dram,
            self._sources,
            self._import_threads,
            speeds.remote_to_ssd,
            clock,
            fetch_threads,
            self._changed,
        )
        self._reads = Reads(
            ssd, dram, self._threads, speeds.ssd_to_dram, clock, read_threads, self._changed
        )
        self._promoter = Promoter(ssd, dram, self._imports, self._reads, self._changed)
        self._removal = Removal(ssd, dram, self._reads, self._threads, self._changed)
        moves = (self._promoter, self._removal)
        self.ready_made = ReadyMade(
            ssd, dram, speeds.ssd_to_dram, self._threads, *moves, self._changed
        )
        """What was made of checkpoints for engines."""
        self._watchers: list[Callable[[], None]] = []

    @classmethod
    async def open(
        cls,
        directory: Path,
        ssd_bytes: int,
        pool: Pool,
        *,
        clock: Clock,
        read_threads: int = 4,
        fetch_threads: int = 8,
        remote: RemoteOptions | None = None,
    ) -> Self:
        """Takes stock of `directory` and measures how fast it is.

        Args:
            directory: the SSD tier; made if it is not there. Used by one store at a time.
            ssd_bytes: the tier's budget.
            pool: the DRAM tier, empty. It stays the caller's, to be closed after the store.
            clock: measures transfers.
            read_threads: threads that read chunks from SSD.
            fetch_threads: threads that fill chunks from sources; as many chunks of memory are
                taken at most where they do not go into the pool.
            remote: how remote sources are read; None: as usual.

        Raises:
            InvalidArgument: another process uses the directory.
            OSError: the disk fails, and the one for temporary files as well.
        """
        ssd = await asyncio.to_thread(SsdTier.open, directory, ssd_bytes, clock, pool.chunk_bytes)
        try:
            speeds = await asyncio.to_thread(measure, directory)
        except BaseException:
            ssd.close()
            raise
        return cls(
            ssd,
            DramTier(pool, clock),
            speeds,
            clock,
            read_threads,
            fetch_threads,
            remote or RemoteOptions(),
        )

    @property
    def speeds(self) -> Speeds:
        """How fast bytes move between the tiers."""
        return self._speeds

    @property
    def chunk_bytes(self) -> int:
        """Of every chunk of the pool."""
        return self._dram.pool.chunk_bytes

    async def promote(
        self,
        source: str,
        dtype: str | None,
        tier: Tier,
        on_progress: Tell = lambda _: None,
        *,
        priority: Priority = Priority.DEMAND,
        pack: bool = False,
        sink: Sink | None = None,
        identity: str = "",
        form: Form | None = None,
    ) -> Lease:
        """Brings the checkpoint of a source up to SSD or DRAM, and leases it there.

        The call joins what is under way for the same checkpoint. A caller that is cancelled needs
        the checkpoint no more: loads that nobody else waits for end, and their room is free at
        once. A source that is gone is still served from the tiers. Local safetensors are served
        from where they lie.

        Args:
            source: URL or path.
            dtype: torch's name for what plain floating weights are converted to; None: nothing.
            tier: SSD or DRAM.
            on_progress: told how far the load is.
            priority: whose chunks go first; joining a load of a lower one raises it.
            pack: convert local safetensors although they could stay where they are.
            sink: takes the chunks of a read that begins for this promotion further up.
            identity: what the source must be; empty: whatever it is.
            form: what it may have been made ready for. Where there is such a one, and it is served
                sooner than what is published, that is brought up; `Lease.record` says so.

        Raises:
            InvalidSource: the source cannot be read, or is not a model.
            InvalidArgument: the dtype or the tier is not one to ask for.
            SourceNotFound: the source is not there, and no tier holds what it was.
            SourceChanged: it is not what it must be.
            SourceForbidden, SourceUnavailable: it cannot be had, and no tier holds what it was.
            CheckpointCorrupt: bytes are not what they should be; names the file and offset.
            ModelTooLarge: a tier could not hold it even if it were empty.
            NoCapacity: too much of a tier is leased or being loaded.
            ShuttingDown: the store was closed.
        """
        if tier not in (Tier.SSD, Tier.DRAM):
            raise InvalidArgument(f"a checkpoint is promoted to SSD or DRAM, not to {tier.name}")
        found = await self._look(parse_source(source), dtype, fresh=False)
        found.check(identity)
        wish = Wish(tier, priority, pack, sink)
        if form and (ready := self.ready_made.soonest(found, form)):
            try:
                return await self._promoter.bring_up(ready, wish, on_progress)
            except (CheckpointCorrupt, CheckpointUnreadable, NoCapacity, ModelTooLarge) as error:
                _log.warning("node.ready_made_not_served", problem=error.message)
        return await self._promoter.bring_up(found, wish, on_progress)

    async def read_ahead(self, source: str, dtype: str | None, form: Form) -> None:
        """See `ReadyMade.read_ahead`.

        Raises:
            SllmError: as `promote`.
        """
        found = await self._look(parse_source(source), dtype, fresh=False)
        await self.ready_made.read_ahead(found, form)

    async def pass_through(
        self, lease: Lease, sink: Sink, *, priority: Priority = Priority.DEMAND
    ) -> Step:
        """Brings the chunks of a checkpoint that is leased on SSD to `sink`, whatever its size.

        They pass through a few chunks of the pool, where none of them stays. A caller that is
        cancelled ends it.

        Raises:
            NoCapacity: the pool has not even room for a few chunks.
            CheckpointCorrupt: bytes are not what they should be; names the file and offset. Or the
                copy was found to be so by others, and is gone.
            ShuttingDown: the store was closed.
        """
        copy = self._ssd.copies.get(lease.digest)
        if copy is None:
            raise corrupt(lease.directory, "was set aside while it was leased; try again")
        return await self._reads.pass_through(copy, priority, sink)

    async def _look(self, place: Place, dtype: str | None, *, fresh: bool) -> FoundSource:
        known = self._ssd.last_known(place.url, dtype)
        return await self._sources.look(place, dtype, known, fresh=fresh)

    async def inspect(
        self, source: str, dtype: str | None, *, fresh: bool = True, identity: str = ""
    ) -> Found:
        """What is known of a source's checkpoint without importing it.

        Args:
            source: URL or path.
            dtype: as in `promote`.
            fresh: whether a remote source is asked anew, even if it was a moment ago.
            identity: what the source must be; empty: whatever it is.

        Raises:
            InvalidSource, InvalidArgument, SourceNotFound, SourceChanged, SourceForbidden,
                SourceUnavailable, CheckpointCorrupt: as `promote`.
        """
        found = await self._look(parse_source(source), dtype, fresh=fresh)
        found.check(identity)
        held = self._find(found.record)
        if held is not None and await self._removal.is_there(held):
            manifest = held.manifest
            size = _tensor_bytes(manifest.tensors)
            digest = manifest.digest
            return Found(held.directory, size, digest, found.record, manifest.tensors)
        files = await self._sources.files(found)
        plan = await self._threads.run(lambda: plan_import(files, dtype))
        return Found(files.directory, plan.tensor_bytes, None, found.record, plan.tensors)

    def _find(self, record: SourceRecord) -> Checkpoint | None:
        dram = self._dram.find(record)
        return dram.checkpoint if dram is not None else self._ssd.find(record)

    async def evict(self, digest: str, tier: Tier) -> None:
        """Frees a checkpoint's room on a tier; the pool's copy goes with the one on SSD.

        Raises:
            CheckpointNotFound: the tier does not hold it.
            CheckpointLeased: it is in use, or being loaded.
        """
        await self._removal.evict(digest, tier)

    def is_in_pool(self, digest: str) -> bool:
        """Whether a checkpoint is in the pool, whole."""
        return digest in self._dram.copies

    def holds(self, digest: str) -> bool:
        """Whether a checkpoint is on SSD or in the pool, whole."""
        return digest in self._ssd.copies or digest in self._dram.copies

    @contextmanager
    def yielding(self, lease: Lease) -> Iterator[None]:
        """Tells meanwhile that a lease on the pool is given up where its room is needed."""
        copy = self._dram.copies.get(lease.digest)
        if copy is None:
            yield
            return
        copy.holding.yielding += 1
        self._changed()
        try:
            yield
        finally:
            copy.holding.yielding -= 1

    def keep(self, digest: str, held: ExitStack) -> None:
        """Leases the copy on SSD, or else that in the pool, until `held` is closed."""
        copy = self._ssd.copies.get(digest) or self._dram.copies.get(digest)
        if copy is not None:
            copy.holding.leases += 1
            held.callback(self._let_go, copy.holding)
            self._changed()

    def _let_go(self, holding: Holding) -> None:
        holding.leases -= 1
        self._changed()

    def copies(self) -> tuple[Copy, ...]:
        """Every checkpoint on every tier, and those that are being read into the pool."""
        return contents.copies(self._ssd, self._dram, self._reads)

    def usage(self) -> tuple[TierUsage, ...]:
        """How full SSD and DRAM are."""
        return contents.usage(self._ssd, self._dram)

    def links(self) -> tuple[Link, ...]:
        """How fast bytes move between the tiers, and how many are waiting to."""
        return contents.links(self._speeds, self._imports, self._reads)

    def subscribe(self, watcher: Callable[[], None]) -> None:
        """Calls `watcher`, in the event loop, after every change of contents, leases or loads."""
        self._watchers.append(watcher)

    def _changed(self) -> None:
        for watcher in self._watchers:
            watcher()

    def check_integrity(self) -> None:
        """Raises AssertionError if the tiers' books contradict each other, the pool or the disk."""
        self._ssd.check_integrity()
        self._dram.check_integrity()

    async def close(self) -> None:
        """Ends what is under way; whoever waits for it gets ShuttingDown. Leases become void."""
        self._threads.stop()
        self._import_threads.stop()
        await self._loads_ended()
        await asyncio.to_thread(self._threads.close)
        await asyncio.to_thread(self._import_threads.close)
        await self._sources.close()
        await asyncio.to_thread(self._imports.close)
        await asyncio.to_thread(self._reads.close)
        self._ssd.close()

    async def _loads_ended(self) -> None:
        # Again, until there are none: whoever waits for one may begin another, which is refused.
        while self._imports.loads or self._reads.loads:
            await asyncio.gather(*(load.ended() for load in self._imports.loads.values()))
            await asyncio.gather(*(load.ended() for load in self._reads.loads.values()))


def _tensor_bytes(tensors: Iterable[TensorEntry]) -> int:
    return sum(tensor.size for tensor in tensors)
