"""What is on one device, and what goes to make room there."""

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass

import structlog

from sllm.clock import Clock
from sllm.errors import NoCapacity, SllmError
from sllm.node.device.layout import Layout
from sllm.node.device.memory import Allocation, DeviceMemory, uninterrupted
from sllm.node.device.reservations import Reservations
from sllm.node.tiers.checkpoints import Checkpoint, SourceRecord
from sllm.node.tiers.ledger import Holding, Ledger
from sllm.node.tiers.types import Copy, Tier
from sllm.node.transfers.work import Step

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, eq=False)
class DeviceCopy:
    """A checkpoint on the device."""

    checkpoint: Checkpoint
    layout: Layout
    memory: Allocation
    holding: Holding
    steps: tuple[Step, ...]
    """Transfers that brought it here, in their order."""

    @property
    def digest(self) -> str:
        """The checkpoint's."""
        return self.checkpoint.manifest.digest

    @property
    def told(self) -> Copy:
        """As the node reports it."""
        size = self.checkpoint.manifest.size_bytes
        leased = self.holding.leases > 0
        return Copy(self.digest, Tier.DEVICE, size, size, self.checkpoint.urls, leased)


class Copies:
    """A device's copies and their accounts. Belongs to the event loop."""

    def __init__(
        self, memory: DeviceMemory, capacity_bytes: int, clock: Clock, changed: Callable[[], None]
    ) -> None:
        self.memory = memory
        self.ledger = Ledger(Tier.DEVICE, capacity_bytes, clock)
        self.reservations = Reservations(self.ledger)
        self.by_digest: dict[str, DeviceCopy] = {}
        self._changed = changed

    def hold(self, copy: DeviceCopy, held: ExitStack) -> None:
        """Keeps a copy here until `held` is closed."""
        copy.holding.leases += 1
        self.ledger.touch(copy.digest)
        held.callback(self.let_go, copy)
        self._changed()

    def let_go(self, copy: DeviceCopy) -> None:
        """Ends one lease."""
        copy.holding.leases -= 1
        self._changed()

    def enter(
        self, record: SourceRecord, weights_bytes: int, kv_bytes: int, held: ExitStack
    ) -> list[DeviceCopy]:
        """Keeps room for a start until `held` is closed, as `Reservations.enter`.

        Returns:
            What is to be freed for it.
        """
        gone = self.reservations.enter(record, weights_bytes, kv_bytes)
        held.callback(self._leave, record, kv_bytes)
        self._changed()
        return [self.by_digest.pop(digest) for digest in gone]

    def _leave(self, record: SourceRecord, kv_bytes: int) -> None:
        self.reservations.leave(record, kv_bytes)
        self._changed()

    def land(
        self,
        checkpoint: Checkpoint,
        layout: Layout,
        memory: Allocation,
        steps: tuple[Step, ...],
    ) -> DeviceCopy:
        """Makes known what was copied into an allocation, which it owns from now on."""
        digest = checkpoint.manifest.digest
        assert digest not in self.by_digest, "a copy would be lost"
        holding = self.ledger.add(digest, layout.size_bytes)
        copy = DeviceCopy(checkpoint, layout, memory, holding, steps)
        self.by_digest[digest] = copy
        return copy

    @asynccontextmanager
    async def allocated(self, record: SourceRecord, size: int) -> AsyncIterator[Allocation]:
        """Memory for a source's weights, free again afterwards, unless a copy has come to own it.

        It uses the room that was kept for these weights.

        Raises:
            ModelTooLarge: the device could not hold it even if it were empty.
            NoCapacity: too much of it is in use; says how much.
            DeviceFailed: CUDA has failed.
        """
        self.reservations.redeem(record)
        gone = [self.by_digest.pop(digest) for digest in self.ledger.reserve(size)]
        try:
            await self.free(gone)
            memory = await self._allocate(size)
            try:
                yield memory
            finally:
                if not any(copy.memory is memory for copy in self.by_digest.values()):
                    await uninterrupted(self.memory.free(memory))
        finally:
            self.ledger.unreserve(size)

    async def _allocate(self, size: int) -> Allocation:
        """Takes memory; if others have it, idle copies go, the one that is missed least first."""
        while True:
            try:
                return await self.memory.allocate(size)
            except NoCapacity:
                digest = self.ledger.least_missed
                if digest is None:
                    raise
                await self.free(self.strike_out([digest]))

    def strike_out(self, digests: Iterable[str]) -> list[DeviceCopy]:
        """Takes copies out of the books: they are to be freed."""
        gone = [self.by_digest.pop(digest) for digest in digests]
        for copy in gone:
            self.ledger.remove(copy.digest)
        return gone

    async def free(self, copies: Sequence[DeviceCopy]) -> None:
        """Frees the memory of copies that are struck out, to the end even if it is cancelled.

        Raises:
            DeviceFailed: CUDA has failed.
        """
        await uninterrupted(self._free(copies))
        if copies:
            self._changed()

    async def _free(self, copies: Iterable[DeviceCopy]) -> None:
        for copy in copies:
            await self.memory.free(copy.memory)

    async def close(self) -> None:
        """Gives all memory back, whatever is leased."""
        for digest in list(self.by_digest):
            try:
                await self.free(self.strike_out([digest]))
            except SllmError as error:
                _log.warning("device.not_freed", digest=digest, problem=error.message)

    def check_integrity(self) -> None:
        """Raises AssertionError if the books contradict themselves."""
        self.ledger.check_integrity(self.by_digest)
        owned = {copy.memory.address for copy in self.by_digest.values()}
        assert owned <= self.memory.allocations, "a copy's memory is not allocated"
