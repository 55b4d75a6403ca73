"""How long a model would take to start on a node, from what nodes have observed.

After ServerlessLLM (Fu et al., OSDI '24), section 6: a checkpoint streams through all links at
once, so that the slowest link decides and not their sum; what waits on that link comes first.
No bandwidth is a constant: a node's own observation is taken, or else the fleet's median.
"""

import math
from typing import NamedTuple

from sllm.control.needs import Checkpoint
from sllm.control.topology import Copy, LinkKey, NodeView, Tier, Typical

IMPORT = (Tier.REMOTE, Tier.SSD)
READ = (Tier.SSD, Tier.DRAM)
DEVICE_COPY = (Tier.DRAM, Tier.DEVICE)


class Pace(NamedTuple):
    """How fast bytes cross a link. Infinite: nobody knows."""

    wait: float
    """Seconds until what is queued on it has crossed."""
    per_byte: float
    """Seconds for every byte."""


class Approach(NamedTuple):
    """The links to a node's kernels, and the init behind them.

    A plain tuple: placement reads those of all nodes for every decision.
    """

    imported: Pace
    read: Pace
    copied: Pace
    """From the pool to the device; takes no time where the pool is the device."""
    init: float
    """Seconds. Infinite: nobody knows."""


_UNKNOWN = Pace(math.inf, 0.0)
_NO_LINK = Pace(0.0, 0.0)


def approach(node: NodeView, typical: Typical) -> Approach:
    """How fast a node comes by weights, by its own observations or else the fleet's."""
    known: tuple[Typical, Approach] | None = node.memo.get(Approach)
    if known and known[0] is typical:
        return known[1]
    init = node.facts.init_time if node.facts.init_time is not None else typical.init_time
    found = Approach(
        _pace(node, IMPORT, typical),
        _pace(node, READ, typical),
        _pace(node, DEVICE_COPY, typical) if node.weights_tier is Tier.DEVICE else _NO_LINK,
        math.inf if init is None else init,
    )
    node.memo[Approach] = (typical, found)
    return found


def _pace(node: NodeView, key: LinkKey, typical: Typical) -> Pace:
    link = node.facts.links.get(key)
    bandwidth = link.bytes_per_second if link else 0.0
    bandwidth = bandwidth if bandwidth > 0 else typical.bandwidths.get(key, 0.0)
    if bandwidth <= 0:
        return _UNKNOWN
    return Pace(link.queued_bytes / bandwidth if link else 0.0, 1 / bandwidth)


def start_seconds(node: NodeView, checkpoint: Checkpoint, typical: Typical) -> float:
    """Seconds until an instance of `checkpoint` could be ready on `node`.

    Per link still to cross (queued + missing bytes) / bandwidth, the largest of these, and the
    node's init time. Infinite: nobody knows.
    """
    found = approach(node, typical)
    slowest, above = 0.0, 0
    for (_, tier), pace in (
        (DEVICE_COPY, found.copied),
        (READ, found.read),
        (IMPORT, found.imported),
    ):
        copy = copy_on(node, checkpoint, tier)
        above = max(above, copy.resident_bytes if copy else 0)
        missing = checkpoint.size_bytes - above
        if missing <= 0:
            break
        crossing = missing * pace.per_byte
        # A load that is under way is already among the queued bytes.
        under_way = copy is not None and copy.leased
        ahead = max(pace.wait, crossing) if under_way else pace.wait + crossing
        slowest = max(slowest, ahead)
    return slowest + found.init


def copy_on(node: NodeView, checkpoint: Checkpoint, tier: Tier) -> Copy | None:
    """The node's copy of a checkpoint on one tier."""
    if checkpoint.digest:
        return node.copies.get((checkpoint.digest, tier))
    copies = (copy for copy in node.copies.values() if copy.tier == tier)
    return next((copy for copy in copies if checkpoint.source in copy.sources), None)
