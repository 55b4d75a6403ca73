"""How long a model would take to start on a node, from what nodes have observed.

After ServerlessLLM (Fu et al., OSDI '24), section 6: a checkpoint streams through all links at
once, so that the slowest link decides and not their sum; what waits on that link comes first.
No bandwidth is a constant: a node's own observation is taken, or else the fleet's median.
"""

from dataclasses import dataclass
from typing import Final

from sllm.control.topology import Copy, LinkKey, NodeView, Tier, Typical

_TO_POOL: Final = ((Tier.REMOTE, Tier.SSD), (Tier.SSD, Tier.DRAM))
_TO_DEVICE: Final = (*_TO_POOL, (Tier.DRAM, Tier.DEVICE))


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What has to be brought to a node."""

    source: str
    size_bytes: int
    digest: str = ""
    """Empty until it has been imported somewhere."""

    @property
    def key(self) -> str:
        """Names it: the digest, or the source while there is none."""
        return self.digest or self.source


@dataclass(frozen=True, slots=True)
class Estimate:
    """The time that a start would take."""

    seconds: float | None
    """None: nothing is known about a link that would have to be crossed."""
    missing_bytes: int
    """Bytes to move, over all links together."""
    observed: bool
    """Whether it rests on this node's own observations alone."""


def copy_on(node: NodeView, checkpoint: Checkpoint, tier: Tier) -> Copy | None:
    """The node's copy of a checkpoint on one tier."""
    if checkpoint.digest:
        return node.copies.get((checkpoint.digest, tier))
    matches = (
        copy
        for copy in node.copies.values()
        if copy.tier == tier and checkpoint.source in copy.sources
    )
    return next(matches, None)


def estimate_start(node: NodeView, checkpoint: Checkpoint, typical: Typical) -> Estimate:
    """The time until an instance of `checkpoint` could be ready on `node`.

    Per link still to cross (queued + missing bytes) / bandwidth, the largest of these, and the
    node's init time.
    """
    slowest: float | None = 0.0
    missing_bytes, observed = 0, True
    links = _TO_DEVICE if node.weights_tier is Tier.DEVICE else _TO_POOL
    above = 0
    for key in reversed(links):
        copy = copy_on(node, checkpoint, key[1])
        above = max(above, copy.resident_bytes if copy else 0)
        missing = checkpoint.size_bytes - above
        if missing <= 0:
            break
        missing_bytes += missing
        under_way = copy is not None and copy.leased
        seconds, own = _crossing(node, key, missing, under_way, typical)
        observed = observed and own
        slowest = None if slowest is None or seconds is None else max(slowest, seconds)
    init = node.facts.init_time
    if init is None:
        init, observed = typical.init_time, False
    total = None if slowest is None or init is None else slowest + init
    return Estimate(total, missing_bytes, observed)


def _crossing(
    node: NodeView, key: LinkKey, missing: int, under_way: bool, typical: Typical
) -> tuple[float | None, bool]:
    """Seconds for `missing` bytes over a link, and whether the node itself has observed it."""
    link = node.facts.links.get(key)
    own = link is not None and link.bytes_per_second > 0
    bandwidth = link.bytes_per_second if link and own else typical.bandwidths.get(key)
    if not bandwidth:
        return None, False
    queued = link.queued_bytes if link else 0
    # A load that is under way is already among the queued bytes.
    ahead = max(queued, missing) if under_way else queued + missing
    return ahead / bandwidth, own
