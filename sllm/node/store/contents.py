"""What the tiers hold and how fast they are, as the node reports it."""

from sllm.checkpoint.format.form import WeightForm
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


def _made(checkpoint: Checkpoint) -> tuple[str, str, WeightForm | None]:
    """Of what it was made, and for what."""
    return checkpoint.made_of, checkpoint.made_for, checkpoint.form


def _on_the_way(ssd: SsdTier, reads: Reads) -> list[Copy]:
    return [
        Copy(
            digest,
            Tier.DRAM,
            load.progress.total_bytes,
            load.progress.loaded_bytes,
            ssd.copies[digest].urls,
            True,  # leased
            *_made(ssd.copies[digest]),
        )
        for digest, load in reads.loads.items()
    ]


def usage(ssd: SsdTier, dram: DramTier) -> tuple[TierUsage, ...]:
    """How full SSD and DRAM are."""
    return _usage(ssd.ledger, ssd.problem), _usage(dram.ledger)


def _usage(ledger: Ledger, problem: str = "") -> TierUsage:
    return TierUsage(ledger.tier, ledger.capacity, ledger.used, problem)


def links(speeds: Speeds, imports: Imports, reads: Reads, *, peers: bool) -> tuple[Link, ...]:
    """How fast bytes move between the tiers, and how many are waiting to. In any thread.

    `peers`: whether any come from other nodes.
    """
    importing = sum(load.remaining_bytes for load in list(imports.loads.values()))
    reading = sum(load.remaining_bytes for load in list(reads.loads.values()))
    return (
        _link(Tier.REMOTE, Tier.SSD, speeds.remote_to_ssd, importing),
        _link(Tier.SSD, Tier.DRAM, speeds.ssd_to_dram, reading, reads.in_flight_bytes),
        _link(Tier.DRAM, Tier.DEVICE, speeds.dram_to_device, 0),
        *([_link(Tier.PEER, Tier.SSD, speeds.peer_to_ssd, 0)] if peers else ()),
    )


def _link(
    from_tier: Tier, to_tier: Tier, speed: Speed, queued_bytes: int, in_flight_bytes: int = 0
) -> Link:
    return Link(from_tier, to_tier, speed.bytes_per_second, queued_bytes, in_flight_bytes)
