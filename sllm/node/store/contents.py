"""What the tiers hold and how fast they are, as the node reports it."""

from sllm.node.tiers.checkpoints import Checkpoint
from sllm.node.tiers.dram import DramTier
from sllm.node.tiers.ledger import Holding, Ledger
from sllm.node.tiers.ssd import SsdTier
from sllm.node.tiers.types import Copy, Link, Tier, TierUsage
from sllm.node.transfers.imports import Imports
from sllm.node.transfers.reads import Reads
from sllm.node.transfers.speeds import Speed, Speeds


def copies(ssd: SsdTier, dram: DramTier, reads: Reads) -> tuple[Copy, ...]:
    """Every checkpoint on every tier, and those that are being read into the pool."""
    on_ssd = [_copy(copy, Tier.SSD, copy.holding) for copy in ssd.copies.values()]
    in_dram = [_copy(copy.checkpoint, Tier.DRAM, copy.holding) for copy in dram.copies.values()]
    return (*on_ssd, *in_dram, *_on_the_way(ssd, reads))


def _copy(checkpoint: Checkpoint, tier: Tier, holding: Holding) -> Copy:
    digest, size = checkpoint.manifest.digest, checkpoint.manifest.size_bytes
    return Copy(digest, tier, size, size, checkpoint.urls, holding.stays, *_made(checkpoint))


def _made(checkpoint: Checkpoint) -> tuple[str, str]:
    """Of what it was made, and for which engine."""
    return checkpoint.made_of, checkpoint.made_for


def _on_the_way(ssd: SsdTier, reads: Reads) -> list[Copy]:
    return [
        Copy(
            digest=digest,
            tier=Tier.DRAM,
            size_bytes=load.progress.total_bytes,
            resident_bytes=load.progress.loaded_bytes,
            sources=ssd.copies[digest].urls,
            leased=True,
            made_of=ssd.copies[digest].made_of,
            made_for=ssd.copies[digest].made_for,
        )
        for digest, load in reads.loads.items()
    ]


def usage(ssd: SsdTier, dram: DramTier) -> tuple[TierUsage, ...]:
    """How full SSD and DRAM are."""
    return _usage(ssd.ledger, ssd.problem), _usage(dram.ledger)


def _usage(ledger: Ledger, problem: str = "") -> TierUsage:
    return TierUsage(ledger.tier, ledger.capacity, ledger.used, problem)


def links(speeds: Speeds, imports: Imports, reads: Reads) -> tuple[Link, ...]:
    """How fast bytes move between the tiers, and how many are waiting to. In any thread."""
    importing = sum(load.remaining_bytes for load in list(imports.loads.values()))
    reading = sum(load.remaining_bytes for load in list(reads.loads.values()))
    return (
        _link(Tier.REMOTE, Tier.SSD, speeds.remote_to_ssd, importing),
        _link(Tier.SSD, Tier.DRAM, speeds.ssd_to_dram, reading, reads.in_flight_bytes),
        _link(Tier.DRAM, Tier.DEVICE, speeds.dram_to_device, 0),
    )


def _link(
    from_tier: Tier, to_tier: Tier, speed: Speed, queued_bytes: int, in_flight_bytes: int = 0
) -> Link:
    return Link(from_tier, to_tier, speed.bytes_per_second, queued_bytes, in_flight_bytes)
