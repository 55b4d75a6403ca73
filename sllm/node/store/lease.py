"""A hold on a checkpoint that keeps it where it is."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from sllm.checkpoint.format.manifest import Manifest
from sllm.node.tiers.checkpoints import Checkpoint, SourceRecord
from sllm.node.tiers.dram import Chunks
from sllm.node.tiers.types import Tier
from sllm.node.transfers.work import Step


@dataclass(frozen=True, slots=True, eq=False)
class Lease:
    """A checkpoint that stays on the tier it was promoted to until `release` is called."""

    checkpoint: Checkpoint
    record: SourceRecord
    """The source that led to it."""
    chunks: Chunks
    """For each partition its chunks in the pool; empty for a lease on SSD alone."""
    from_tier: Tier
    """The highest tier that held the checkpoint when it was asked for."""
    steps: tuple[Step, ...]
    """Transfers that were waited for, in their order; none if nothing had to move."""
    held: ExitStack
    """Undoes the holds."""

    @property
    def manifest(self) -> Manifest:
        """What the checkpoint consists of."""
        return self.checkpoint.manifest

    @property
    def directory(self) -> Path:
        """Of the model's small files."""
        return self.checkpoint.directory

    @property
    def digest(self) -> str:
        """The checkpoint's."""
        return self.manifest.digest

    @property
    def size_bytes(self) -> int:
        """Bytes of the checkpoint's partitions."""
        return self.manifest.size_bytes

    def release(self) -> None:
        """Lets the checkpoint be evicted. A second call does nothing."""
        self.held.close()
