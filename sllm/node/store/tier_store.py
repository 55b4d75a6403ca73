"""The tier store: every byte of weights on a node, on SSD and in memory."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Self

import structlog

from sllm.checkpoint.format.manifest import corrupt
from sllm.checkpoint.remote.options import RemoteOptions
from sllm.checkpoint.remote.remotes import Remotes
from sllm.checkpoint.sources.policy import EVERYTHING, SourcePolicy
from sllm.clock import Clock
from sllm.errors import (
    CheckpointCorrupt,
    InvalidArgument,
)
from sllm.node.kept.fetching import PageFetcher
from sllm.node.kept.from_peers import PagesFromPeers
from sllm.node.kept.giving import PageGiver
from sllm.node.kept.kept_pages import KeptPages
from sllm.node.kept.links import LinkSpeeds
from sllm.node.kept.records import NOTHING_KEPT, KeptBudget
from sllm.node.peers.types import Network, Peers
from sllm.node.store import contents
from sllm.node.store.first_uses import FirstUses
from sllm.node.store.forms_from_peers import FormsFromPeers
from sllm.node.store.inspector import Inspector
from sllm.node.store.keeping import Keeping
from sllm.node.store.lease import Lease
from sllm.node.store.promoter import Promoter
from sllm.node.store.ready_made import ReadyMade
from sllm.node.store.remote_forms import RemoteForms
from sllm.node.store.removal import Removal
from sllm.node.store.sharing import Sharing
from sllm.node.tiers.dram import DramTier
from sllm.node.tiers.pool import Pool
from sllm.node.tiers.ssd import SsdTier
from sllm.node.tiers.types import Copy, Link, Tier, TierUsage
from sllm.node.transfers.imports import Imports
from sllm.node.transfers.loads import Tell, Threads
from sllm.node.transfers.reads import Reads
from sllm.node.transfers.sources import Sources
from sllm.node.transfers.speeds import Reloads, Speeds, measure
from sllm.node.transfers.work import EarlyUser, Form, Found, Priority, Sink, Step, Wish

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
        policy: SourcePolicy,
        network: Network | None,
        kept: KeptBudget,
    ) -> None:
        self._has_peers = network is not None
        self._ssd = ssd
        self._dram = dram
        self._speeds = speeds
        self.reloads = Reloads(ssd, dram, speeds)
        """What bringing checkpoints back to a tier would take."""
        ssd.ledger.reload_seconds = self.reloads.to_ssd
        dram.ledger.reload_seconds = self.reloads.to_dram
        self.wanted_for = dram.ledger.wanted_for
        """Of the pool; see `Ledger`."""
        self._threads = Threads()
        self._import_threads = Threads(_SOURCE_THREADS)
        remotes = Remotes(remote, policy)
        self._sources = Sources(self._import_threads, remotes, ssd.directory, clock, policy)
        self._imports = Imports(
            ssd,
            dram,
            self._sources,
            self._import_threads,
            speeds,
            clock,
            fetch_threads,
            self._changed,
            network,
        )
        self._reads = Reads(
            ssd, dram, self._threads, speeds.ssd_to_dram, clock, read_threads, self._changed
        )
        self._promoter = Promoter(ssd, dram, self._imports, self._reads, self._changed)
        self._removal = Removal(ssd, dram, self._reads, self._threads, self._changed)
        self.sharing = Sharing(ssd, dram, self._imports, self._reads, self._threads, clock)
        """Gives chunks to other nodes."""
        self._inspector = Inspector(ssd, dram, self._sources, self._import_threads, self._removal)
        moves = (self._promoter, self._removal)
        self.ready_made = ReadyMade(
            ssd,
            dram,
            speeds.ssd_to_dram,
            self._threads,
            *moves,
            RemoteForms(self._sources, self._import_threads, dram.pool.chunk_bytes),
            self._changed,
        )
        """What was made of checkpoints for engines."""
        self.forms_from_peers = FormsFromPeers(self.ready_made, network, dram.pool.chunk_bytes)
        """What other nodes have made of them."""
        self.first_uses = FirstUses(ssd, self._threads)
        """In which order models use their weights."""
        self.keeping = Keeping(ssd, dram, self._changed)
        """Who wants which copies kept, beside those who lease them."""
        self.kept = KeptPages(ssd, dram, speeds, self._threads, kept, clock)
        """Pages of KV caches that outlive their instances."""
        self.giving_pages = PageGiver(self.kept, dram.pool, clock, self.sharing.is_busy)
        """Gives them to other nodes."""
        self.fetching_pages = PageFetcher(self.kept, dram.pool, network, LinkSpeeds(), clock)
        """Has theirs be kept here."""
        self.pages_from_peers = PagesFromPeers(self.kept, self.fetching_pages)
        """Has those of a prompt, where that is sooner than computing them."""
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
        policy: SourcePolicy = EVERYTHING,
        network: Network | None = None,
        kept: KeptBudget = NOTHING_KEPT,
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
            policy: which sources may be read, and what opens them.
            network: leads to other nodes. None: nothing is had from them.
            kept: what pages of KV caches may have of the tiers.

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
        store = cls(
            ssd,
            DramTier(pool, clock),
            speeds,
            clock,
            read_threads,
            fetch_threads,
            remote or RemoteOptions(),
            policy,
            network,
            kept,
        )
        await store.kept.open()
        return store

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
        early: EarlyUser | None = None,
        peers: Peers | None = None,
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
            early: uses the chunks of a read from SSD that begins for this promotion before all are
                there, if the model has run here before; not those of a read that is joined.
            peers: other nodes to have it from, where it is not here.

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
        found = await self._inspector.look(source, dtype, fresh=False, identity=identity)
        wish = Wish(tier, priority, pack, sink, early, peers)
        if form and (lease := await self.ready_made.bring_up(found, form, wish, on_progress)):
            return lease
        return await self._promoter.bring_up(found, wish, on_progress)

    async def read_ahead(self, source: str, dtype: str | None, form: Form) -> None:
        """See `ReadyMade.read_ahead`.

        Raises:
            SllmError: as `promote`.
        """
        found = await self._inspector.look(source, dtype, fresh=False)
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
        return await self._inspector.inspect(source, dtype, fresh=fresh, identity=identity)

    async def evict(self, digest: str, tier: Tier) -> None:
        """Frees a checkpoint's room on a tier; the pool's copy goes with the one on SSD.

        Raises:
            CheckpointNotFound: the tier does not hold it.
            CheckpointLeased: it is in use, or being loaded.
        """
        await self._removal.evict(digest, tier)

    def set_aside(self, digest: str, error: CheckpointCorrupt) -> None:
        """Takes a copy on SSD for corrupt, as whoever reads it by itself has found it to be.

        It may be leased. One that nothing could replace stays.
        """
        copy = self._ssd.copies.get(digest)
        if copy is not None and copy.replaceable:
            self._ssd.quarantine(copy, error)
            self._changed()

    def is_in_pool(self, digest: str) -> bool:
        """Whether a checkpoint is in the pool, whole."""
        return digest in self._dram.copies

    def holds(self, digest: str) -> bool:
        """Whether a checkpoint is on SSD or in the pool, whole."""
        return digest in self._ssd.copies or digest in self._dram.copies

    def copies(self) -> tuple[Copy, ...]:
        """Every checkpoint on every tier, and those that are being read into the pool."""
        return contents.copies(self._ssd, self._dram, self._reads)

    def usage(self) -> tuple[TierUsage, ...]:
        """How full SSD and DRAM are."""
        return contents.usage(self._ssd, self._dram)

    def links(self) -> tuple[Link, ...]:
        """How fast bytes move between the tiers, and how many are waiting to."""
        return contents.links(self._speeds, self._imports, self._reads, peers=self._has_peers)

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
        self.kept.check_integrity()

    async def close(self) -> None:
        """Ends what is under way; whoever waits for it gets ShuttingDown. Leases become void."""
        await self.fetching_pages.close()
        await self.kept.close()
        self._threads.stop()
        self._import_threads.stop()
        await self.forms_from_peers.close()
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
