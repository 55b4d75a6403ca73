"""What a node's devices are, and where on them a checkpoint is."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sllm.checkpoint.format.manifest import Manifest
from sllm.node.device.kv_sharing import KvShare
from sllm.node.peers.types import Peers
from sllm.node.tiers.checkpoints import SourceRecord
from sllm.node.tiers.dram import Chunks
from sllm.node.tiers.types import Copy, Tier, TierUsage
from sllm.node.transfers.loads import Tell
from sllm.node.transfers.work import EarlyUser, Form, Found, Step


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """One device, as its node reports it."""

    index: int
    """In CUDA's order."""
    name: str
    """Of its model."""
    uuid: str
    total_bytes: int
    """Of its memory."""
    free_bytes: int
    """Of its memory, as measured last: what no process of the machine has taken."""
    weights_capacity_bytes: int
    """What checkpoints may take; KV caches have what they leave of it."""
    weights_used_bytes: int
    """What they have taken, loads under way included."""
    kv_capacity_bytes: int
    """What the KV caches of its instances may take at most."""
    kv_used_bytes: int
    """What they have been given."""
    reserved_bytes: int
    """What is kept for weights of starts whose loads have not begun."""
    idle_bytes: int
    """Of the weights, those that no instance uses: they go when room is needed."""

    @property
    def left_bytes(self) -> int:
        """What weights and KV caches of one more start could have."""
        taken = self.weights_used_bytes + self.kv_used_bytes + self.reserved_bytes
        return self.weights_capacity_bytes - taken + self.idle_bytes


@dataclass(frozen=True, slots=True)
class InPool:
    """Weights that are read where they are: in chunks of the pool."""

    chunks: Chunks
    chunk_bytes: int
    """Of every chunk."""


@dataclass(frozen=True, slots=True)
class OnDevice:
    """Weights in one allocation of a device."""

    handle: bytes
    """Opens the allocation in another process."""
    size_bytes: int
    """Of the allocation."""
    partitions: tuple[int, ...]
    """Offset of each partition in it."""


@dataclass(frozen=True, slots=True)
class OnDisk:
    """A mixture of experts whose experts stay on SSD: a worker reads it by itself."""

    directory: Path
    """Of the partitions."""
    expert_bytes: int
    """Memory that experts may take in the worker."""


Place = InPool | OnDevice | OnDisk


@dataclass(frozen=True, slots=True)
class Placed:
    """A checkpoint where kernels can read it; it stays there until `release` is called."""

    manifest: Manifest
    record: SourceRecord
    """The source that led to it."""
    place: Place
    from_tier: Tier
    """The highest tier that held it when it was asked for."""
    steps: Sequence[Step]
    """Transfers that were waited for; none if nothing had to move."""
    held: ExitStack
    """Undoes the holds."""
    ready_made: Path | None = None
    """Directory of its small files, if it was made ready for the engine that asked for it."""

    @property
    def digest(self) -> str:
        """Of the checkpoint, as it is published."""
        return self.record.made_of or self.manifest.digest

    def release(self) -> None:
        """Lets the checkpoint be evicted. A second call does nothing."""
        self.held.close()


@dataclass(frozen=True, slots=True)
class WeightsWish:
    """Which weights an instance wants."""

    source: str
    dtype: str | None
    """Name of a torch dtype to convert to. None: as stored."""
    pack: bool
    """Whether local safetensors are packed, and not read where they lie."""
    form: Form | None = None
    """What they may have been made ready for. None: they must be as published."""
    early: EarlyUser | None = None
    """Uses them before all are there, where they are read into the pool for this wish and the pool
    is the device."""
    expert_bytes: int | None = None
    """Memory that experts may take, which then stay on SSD. None: all weights are brought up."""
    peers: Peers | None = None
    """Other nodes to have them from, where this one lacks them."""


class Seat(Protocol):
    """The device of one instance."""

    @property
    def index(self) -> int | None:
        """In CUDA's order. None: the pool is the device."""
        ...

    @property
    def environment(self) -> Mapping[str, str]:
        """Variables that the instance's worker needs to find the device, and no other."""
        ...

    @property
    def kv_share(self) -> KvShare | None:
        """Of a budget for KV caches that instances share. None: it keeps what it was given."""
        ...

    async def bring_up(self, wish: WeightsWish, tell: Tell) -> Placed:
        """Weights where the device's kernels can read them.

        A caller that is cancelled needs them no more: loads that nobody else waits for end, and
        their room is free.

        Raises:
            SllmError: as `TierStore.promote`; also that the device has no room for them.
        """
        ...


class Devices(Protocol):
    """What a node's kernels run on. Belongs to the event loop."""

    def check_fits(self, size_bytes: int) -> None:
        """Whether a checkpoint of this size could ever be served here.

        Raises:
            ModelTooLarge: it could not, even if nothing else were; says the sizes.
        """
        ...

    def seat(self, found: Found, kv_bytes: int) -> AbstractAsyncContextManager[Seat]:
        """A device for one instance, with room for its weights and KV cache, kept until the end.

        Raises:
            NoCapacity: no device has so much; says how much each has.
            ModelTooLarge: as `check_fits`.
            DeviceFailed: CUDA has failed.
        """
        ...

    @property
    def kv_capacity_bytes(self) -> int:
        """What the KV caches of all instances may take."""
        ...

    @property
    def max_together(self) -> int:
        """How many devices may run one instance together."""
        ...

    def infos(self) -> tuple[DeviceInfo, ...]:
        """Every device; none where the pool is the device."""
        ...

    def copies(self) -> tuple[Copy, ...]:
        """Checkpoints on devices, beside those that the tier store tells of."""
        ...

    def usage(self) -> tuple[TierUsage, ...]:
        """How full the tier is, if it is one of its own."""
        ...

    @property
    def queued_bytes(self) -> int:
        """Bytes that loads under way still have to copy to devices. In any thread."""
        ...

    @property
    def in_flight_bytes(self) -> int:
        """Of these, bytes of the chunks that are being copied at this moment. In any thread."""
        ...

    def subscribe(self, watcher: Callable[[], None]) -> None:
        """Calls `watcher`, in the event loop, after every change of what is told here."""
        ...

    async def evict(self, digest: str) -> None:
        """Frees a checkpoint's room on every device.

        Raises:
            CheckpointNotFound: no device holds it.
            CheckpointLeased: it is in use, or being loaded.
        """
        ...

    async def close(self) -> None:
        """Gives all memory back. No instance may be left."""
        ...
