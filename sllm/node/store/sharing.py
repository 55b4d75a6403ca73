"""What this node has of checkpoints, given to other nodes."""

import asyncio
import mmap
from collections.abc import AsyncGenerator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from sllm.checkpoint.format.manifest import BLOCK_BYTES, Manifest
from sllm.checkpoint.format.manifest_file import encode_manifest
from sllm.checkpoint.format.plain_files import read_plain
from sllm.checkpoint.format.room import Room
from sllm.checkpoint.reading.chunk_reader import open_file
from sllm.clock import Clock
from sllm.errors import (
    CheckpointCorrupt,
    CheckpointNotFound,
    CheckpointUnreadable,
    InvalidArgument,
)
from sllm.node.peers.exchange import Exchange
from sllm.node.peers.news import News
from sllm.node.peers.turns import SIGN_SECONDS, Turn
from sllm.node.peers.types import Peer
from sllm.node.tiers.checkpoints import SourceRecord
from sllm.node.tiers.dram import DramCopy, DramTier
from sllm.node.tiers.ledger import Holding
from sllm.node.tiers.ssd import SsdCopy, SsdTier
from sllm.node.tiers.types import Tier
from sllm.node.transfers.imports import Imports
from sllm.node.transfers.loads import Threads
from sllm.node.transfers.reads import Reads
from sllm.node.transfers.work import Priority

PIECE_BYTES: Final = 256 << 10
"""Of a chunk, in one message."""
_STREAMS: Final = 8
"""Chunks that are given at a time; more callers wait for their turns."""
_BEGIN_SECONDS: Final = 1.5
"""How long a checkpoint is waited for that may be about to arrive."""
_LOOK_SECONDS: Final = 0.05
_GATHER_SECONDS: Final = 0.01
"""News that come within this time travel together."""


@dataclass(frozen=True, slots=True)
class _Where:
    """Where a chunk is at the moment."""

    size: int
    memory: memoryview | None
    """None: it is in the file."""
    file: Path | None
    offset: int
    """Of the chunk in the file."""
    holding: Holding | None
    """What keeps it there. None: it is arriving."""
    room: Room | None = None
    """Where the file may lie, if others can write there."""


class Sharing:
    """Gives chunks to other nodes, and gives way to this node's own loads. Of the event loop."""

    def __init__(
        self,
        ssd: SsdTier,
        dram: DramTier,
        imports: Imports,
        reads: Reads,
        threads: Threads,
        clock: Clock,
    ) -> None:
        self._ssd = ssd
        self._dram = dram
        self._imports = imports
        self._reads = reads
        self._threads = threads
        self._clock = clock
        self._turns = asyncio.Semaphore(_STREAMS)
        self._encoding = asyncio.Lock()
        self._last_encoded = "", b""
        """A digest, and the manifest: several ask for one at the same time."""

    # --- what is here -------------------------------------------------------------------------

    def record_of(self, digest: str) -> SourceRecord:
        """What has led to a checkpoint that is here.

        Raises:
            CheckpointNotFound: it is not.
        """
        in_pool, on_disk = self._dram.copies.get(digest), self._ssd.copies.get(digest)
        copy = on_disk or (in_pool.checkpoint if in_pool else None)
        if copy is None or not copy.sources:
            raise CheckpointNotFound(f"this node has nothing of the checkpoint {digest}")
        return copy.sources[0]

    async def follow(
        self, record: SourceRecord, caller: Peer | None, *, wants_manifest: bool
    ) -> AsyncGenerator[News]:
        """What this node has of the checkpoint that a source leads to, until it has all of it.

        Args:
            record: the source.
            caller: who follows, if it is getting the checkpoint as well: it is a giver, too.
            wants_manifest: whether the first news are to have the manifest, if it is known.

        Raises:
            CheckpointNotFound: there is nothing of it, or it has stopped arriving.
        """
        await self._until_begun(record)
        while (exchange := self._imports.exchanges.get(record)) is not None:
            if caller is not None:
                exchange.meet(caller)
            async for news in self._follow_arrival(record, exchange, wants_manifest=wants_manifest):
                wants_manifest = wants_manifest and not news.manifest
                yield news
        _, manifest = self._whole(record)
        encoded = await self._encoded(manifest) if wants_manifest else b""
        tier, _ = self._whole(record)  # it may have moved meanwhile
        yield News(tier, whole=True, manifest=encoded)

    async def _encoded(self, manifest: Manifest) -> bytes:
        """In a thread, and once: one of many thousand experts takes a second."""
        async with self._encoding:
            digest, encoded = self._last_encoded
            if digest != manifest.digest:
                encoded = await self._threads.run(partial(encode_manifest, manifest))
                self._last_encoded = manifest.digest, encoded
            return encoded

    async def _until_begun(self, record: SourceRecord) -> None:
        until = self._clock.now() + _BEGIN_SECONDS
        while not self._has_any(record) and self._clock.now() < until:
            await self._clock.sleep(_LOOK_SECONDS)

    def _has_any(self, record: SourceRecord) -> bool:
        return bool(record in self._imports.exchanges or self._copy(record))

    async def _follow_arrival(
        self, record: SourceRecord, exchange: Exchange, *, wants_manifest: bool
    ) -> AsyncGenerator[News]:
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            loop.call_soon_threadsafe(changed.set)

        end = exchange.arrivals.watch(wake)
        heard = exchange.arrivals.now
        try:
            while self._imports.exchanges.get(record) is exchange:
                changed.clear()
                manifest = exchange.manifest if wants_manifest else None
                encoded = await self._encoded(manifest) if manifest else b""
                news, heard = exchange.arrivals.news(heard, encoded)
                wants_manifest = wants_manifest and manifest is None
                yield news
                with suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), SIGN_SECONDS)
                    await self._clock.sleep(_GATHER_SECONDS)
        finally:
            end()

    def _whole(self, record: SourceRecord) -> tuple[Tier, Manifest]:
        copy = self._copy(record)
        if copy is None:
            raise _not_here(record)
        return Tier.DRAM if isinstance(copy, DramCopy) else Tier.SSD, _manifest(copy)

    def _copy(self, record: SourceRecord) -> SsdCopy | DramCopy | None:
        """A copy whose chunks have known digests: whoever has them from here must check them."""
        on_disk = self._ssd.find(record, packed=True)
        copy = self._dram.find(record) or on_disk
        is_proven = copy and all(entry.digests for entry in _manifest(copy).partitions)
        return copy if is_proven else on_disk

    # --- chunks -------------------------------------------------------------------------------

    async def pieces(self, record: SourceRecord, chunk: int, offset: int) -> AsyncGenerator[bytes]:
        """A chunk's bytes from `offset` on; none now and then while others have their turns.

        Raises:
            CheckpointNotFound: it is not here.
            InvalidArgument: there is no such chunk, or it has not so many bytes.
        """
        turn = Turn(self._turns)
        try:
            async for _ in turn.wait():
                yield b""
            with ExitStack() as held:
                leased: set[int] = set()
                size = self._find(record, chunk).size
                if not 0 <= offset <= size:
                    raise InvalidArgument(f"the chunk has {size} bytes, and not {offset} before it")
                while offset < size:
                    began = self._clock.now()
                    piece = await self._piece(record, chunk, offset, held, leased)
                    with turn.giving():
                        yield piece
                    offset += len(piece)
                    async for _ in turn.pause(self._clock, began, is_busy=self.is_busy(record)):
                        yield b""
        finally:
            turn.release()

    async def file_pieces(
        self, record: SourceRecord, name: str, offset: int
    ) -> AsyncGenerator[bytes]:
        """As `pieces`, of a small file of a checkpoint that is here.

        Raises:
            CheckpointNotFound: it is not here, or has no such file.
        """
        copy = self._copy(record) if offset >= 0 else None
        if copy is None or all(file.name != name for file in _manifest(copy).files):
            raise CheckpointNotFound(f"this node has no checkpoint with a file {name!r}")
        directory = copy.checkpoint.directory if isinstance(copy, DramCopy) else copy.directory
        try:
            content = await self._threads.run(partial(read_plain, directory / name))
        except OSError as error:
            raise CheckpointNotFound(f"the file {name!r} is not here any more") from error
        turn = Turn(self._turns)
        try:
            async for _ in turn.wait():
                yield b""
            for start in range(offset, len(content), PIECE_BYTES):
                began = self._clock.now()
                with turn.giving():
                    yield content[start : start + PIECE_BYTES]
                async for _ in turn.pause(self._clock, began, is_busy=self.is_busy(record)):
                    yield b""
        finally:
            turn.release()

    def is_busy(self, record: SourceRecord | None = None) -> bool:
        """Whether a request waits for a load here, of anything but what is given."""
        own = self._copy(record) if record else None
        digest = _manifest(own).digest if own else ""
        wanted = {
            *(load.priority for (one, _), load in self._imports.loads.items() if one != record),
            *(load.priority for one, load in self._reads.loads.items() if one != digest),
        }
        return Priority.DEMAND in wanted

    async def _piece(
        self, record: SourceRecord, chunk: int, offset: int, held: ExitStack, leased: set[int]
    ) -> bytes:
        """Looks anew for each: what is arriving lands meanwhile, and what has landed stays."""
        place = self._find(record, chunk)
        if place.holding is not None and id(place.holding) not in leased:
            leased.add(id(place.holding))
            place.holding.leases += 1
            held.callback(_let_go, place.holding)
        size = min(PIECE_BYTES, place.size - offset)
        if place.memory is not None:
            return bytes(place.memory[offset : offset + size])
        try:
            return await self._threads.run(partial(_read, place, offset, size))
        except (CheckpointCorrupt, CheckpointUnreadable):
            # What was arriving has been moved to where it stays.
            return await self._threads.run(partial(_read, self._find(record, chunk), offset, size))

    def _find(self, record: SourceRecord, chunk: int) -> _Where:
        exchange = self._imports.exchanges.get(record)
        arrived = exchange.arrivals.where(chunk) if exchange else None
        if arrived is not None:
            plan = arrived.plan
            return _Where(plan.size, arrived.memory, arrived.file, plan.offset, None)
        copy = self._copy(record)
        if copy is None:
            raise _not_here(record)
        return self._in_copy(copy, chunk)

    def _in_copy(self, copy: SsdCopy | DramCopy, chunk: int) -> _Where:
        partition, index = _split(_manifest(copy), chunk)
        entry = _manifest(copy).partitions[partition]
        start = index * entry.chunk_size
        size = min(entry.chunk_size, entry.size - start)
        if isinstance(copy, DramCopy):
            memory = self._dram.pool.view(copy.chunks[partition][index])[:size]
            return _Where(size, memory, None, 0, copy.holding)
        room = copy.in_place.room if copy.in_place else None
        return _Where(size, None, copy.weights / entry.file, start, copy.holding, room)


def _manifest(copy: SsdCopy | DramCopy) -> Manifest:
    return copy.checkpoint.manifest if isinstance(copy, DramCopy) else copy.manifest


def _split(manifest: Manifest, chunk: int) -> tuple[int, int]:
    """The partition of a chunk that is counted over all of them, and its index there."""
    left = chunk
    for partition, entry in enumerate(manifest.partitions):
        if 0 <= left < entry.chunk_count:
            return partition, left
        left -= entry.chunk_count
    raise InvalidArgument(f"there is no chunk {chunk}")


def _read(place: _Where, offset: int, size: int) -> bytes:
    if place.memory is not None:
        return bytes(place.memory[offset : offset + size])
    assert place.file is not None, "a chunk is somewhere"
    offset += place.offset
    start = offset // BLOCK_BYTES * BLOCK_BYTES
    wanted = offset - start + size
    whole = -(-wanted // BLOCK_BYTES) * BLOCK_BYTES
    with mmap.mmap(-1, whole) as memory, open_file(place.file, place.room) as file:
        with memoryview(memory) as view:
            file.read_into(view, start, wanted)
        return memory[offset - start : wanted]


def _let_go(holding: Holding) -> None:
    holding.leases -= 1


def _not_here(record: SourceRecord) -> CheckpointNotFound:
    return CheckpointNotFound(f"this node has nothing of {record.url}, or not that of it")
