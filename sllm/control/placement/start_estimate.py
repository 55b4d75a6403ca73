"""How long a model would take to start on a node, from what nodes have observed.

After ServerlessLLM (Fu et al., OSDI '24), section 6: a checkpoint streams through all links at
once, so that the slowest link decides and not their sum; what waits on that link comes first.
The worker is started and prepared beside the load. Weights that were made ready for the engine
count by their own size, and starts over them by what such starts took.
Nothing is a constant, but for engines that are still being imported. A bandwidth is the node's own
observation, or else the fleet's median. An init is what the node observed of this checkpoint, or
else the fleet's median for it, or else what the node's other checkpoints let expect of one of its
size, or else the fleet's.
"""

import math
from typing import NamedTuple

from sllm.control.cluster.linear_fit import Line
from sllm.control.cluster.needs import Checkpoint, Need
from sllm.control.cluster.nodes import NodeView
from sllm.control.cluster.snapshot import Typical
from sllm.control.cluster.tiers import LinkKey, Tier
from sllm.control.placement.forms import Taken, init_seen, need_over, taken_on

IMPORT = (Tier.REMOTE, Tier.SSD)
FETCH = (Tier.PEER, Tier.SSD)
READ = (Tier.SSD, Tier.DRAM)
DEVICE_COPY = (Tier.DRAM, Tier.DEVICE)


class Estimate(NamedTuple):
    """What a start takes, in parts that follow one another. Infinite: nobody knows."""

    queue: float
    """Seconds until the bytes ahead on the slowest link have crossed it."""
    transfer: float
    """Seconds until the missing bytes have crossed it, and the way from another zone."""
    init: float
    """Seconds from then on to a ready instance."""

    @property
    def seconds(self) -> float:
        """In all."""
        return self.queue + self.transfer + self.init


class Pace(NamedTuple):
    """How fast bytes cross a link. Infinite: nobody knows."""

    wait: float
    """Seconds until what is queued on it has crossed."""
    per_byte: float
    """Seconds for every byte."""


class Source(NamedTuple):
    """Where a checkpoint comes from that a node has nothing of."""

    pace: Pace
    way: float
    """Seconds before the first byte, from nodes of another zone."""


class Approach(NamedTuple):
    """The links to a node's kernels, and what comes beside and behind them.

    A plain tuple: it is worked out anew with every change of a node.
    """

    imported: Pace
    fetched: Pace
    """Of a checkpoint that other nodes hold: from them where that pays, or else as imported."""
    read: Pace
    copied: Pace
    """From the pool to the device; takes no time where the pool is the device."""
    prepare: Line
    """Seconds by bytes of a checkpoint that nobody has started. Infinite: nobody knows."""
    attach: Line
    own: bool
    """Whether all of it was observed by the node itself."""


_NOT_WORTH = 0.5
"""Times as fast as sources: other nodes that are slower than this are not asked."""
_UNKNOWN = Pace(math.inf, 0.0)
_NO_LINK = Pace(0.0, 0.0)
_NEVER = Line(math.inf, 0.0)
_NOTHING = Line(0.0, 0.0)


def approach(node: NodeView, typical: Typical) -> Approach:
    """How fast a node comes by weights, by its own observations or else the fleet's."""
    known: tuple[Typical, Approach] | None = node.memo.get(Approach)
    if known and (known[1].own or known[0] is typical):
        return known[1]
    prepare, attach = _init_lines(node, typical)
    has_device = node.weights_tier is Tier.DEVICE
    links = [IMPORT, READ, *([DEVICE_COPY] if has_device else ()), *_fetching(node)]
    imported = _pace(node, IMPORT, typical)
    found = Approach(
        imported,
        _pace(node, FETCH, typical) if fetches(node) else imported,
        _pace(node, READ, typical),
        _pace(node, DEVICE_COPY, typical) if has_device else _NO_LINK,
        prepare,
        attach,
        own=all(speed(node, key) > 0 for key in links) and bool(node.facts.init_times.by_model),
    )
    node.memo[Approach] = (typical, found)
    return found


def fetches(node: NodeView) -> bool:
    """Whether a node has from others what they hold: not where they are much slower than sources.

    As far as it has seen; one of an earlier version, or with `--no-peers`, does not tell.
    """
    fetched, imported = speed(node, FETCH), speed(node, IMPORT)
    return bool(fetched and fetched > _NOT_WORTH * imported)


def _fetching(node: NodeView) -> tuple[LinkKey, ...]:
    return (FETCH,) if FETCH in node.facts.links else ()


def way_of_fetch(node: NodeView, checkpoint: Checkpoint, typical: Typical) -> float | None:
    """What the way costs to those that a node has a checkpoint from. None: from its source."""
    if checkpoint.digest not in typical.held or not fetches(node):
        return None
    return typical.held.seconds(checkpoint.digest, node.facts.zone)


def source_of(node: NodeView, checkpoint: Checkpoint, found: Approach, typical: Typical) -> Source:
    """How fast a checkpoint comes to a node that has nothing of it."""
    way = way_of_fetch(node, checkpoint, typical)
    return Source(found.imported, 0.0) if way is None else Source(found.fetched, way)


def _init_lines(node: NodeView, typical: Typical) -> tuple[Line, Line]:
    """Prepare and attach: the node's own, by model or over all, or else the fleet's."""
    for init_times, init_time in (
        (node.facts.init_times, node.facts.init_time),
        (typical.init_times, typical.init_time),
    ):
        if init_times.prepare and init_times.attach:
            return init_times.prepare, init_times.attach
        if init_time is not None:
            return _NOTHING, Line(init_time, 0.0)
    return _NOTHING, _NEVER


def speed(node: NodeView, key: LinkKey) -> float:
    """Bytes per second of a link, as a node has observed it. 0: nothing has crossed it."""
    link = node.facts.links.get(key)
    return link.bytes_per_second if link else 0.0


def _pace(node: NodeView, key: LinkKey, typical: Typical) -> Pace:
    bandwidth = speed(node, key) or typical.bandwidths.get(key, 0.0)
    if bandwidth <= 0:
        return _UNKNOWN
    return Pace(_queued(node, key) / bandwidth, 1 / bandwidth)


def _queued(node: NodeView, key: LinkKey) -> int:
    """Bytes ahead: those that are reported, and those of starts that no report tells of yet."""
    link = node.facts.links.get(key)
    reported = link.queued_bytes if link else 0
    if key == READ:
        return reported + node.unseen_reads
    if key not in (IMPORT, FETCH):
        return reported
    imports = node.facts.links.get(IMPORT)  # what is fetched is a part of imports
    return max(imports.queued_bytes if imports else 0, node.unseen_imports)


def weights_on(node: NodeView, need: Need, typical: Typical) -> Taken:
    """The form of its weights that a start on a node would take."""
    return taken_on(node, need, approach(node, typical).read.per_byte, typical)


def need_on(node: NodeView, need: Need, typical: Typical) -> Need:
    """What a start on a node needs there, over the weights that it would take."""
    return need_over(weights_on(node, need, typical), need)


def init_seconds(node: NodeView, need: Need, typical: Typical) -> tuple[float, float]:
    """Seconds to prepare a worker, and then to attach it to weights, when all is as usual.

    Where nobody has started from one form yet, starts from the other tell of it.
    """
    ready_made = weights_on(node, need, typical).ready_made
    seen = init_seen(node, need, typical, ready_made=ready_made)
    seen = seen or init_seen(node, need, typical, ready_made=not ready_made)
    if seen:
        return seen.prepare, seen.attach
    found, size = approach(node, typical), need.checkpoint.size_bytes
    return found.prepare.at(size), found.attach.at(size)


def start_estimate(node: NodeView, need: Need, typical: Typical) -> Estimate:
    """What it takes until an instance could be ready on `node`, room aside."""
    prepare, attach = (typical.slowness * one for one in init_seconds(node, need, typical))
    prepare += node.engine_wait(need.engine)
    found = approach(node, typical)
    taken, load = weights_on(node, need, typical), _load_on_disk if need.on_disk else _load
    source = source_of(node, need.checkpoint, found, typical)
    queue, transfer = load(node, need, taken, found, source)
    beside = queue + transfer
    return Estimate(queue, transfer, (prepare - beside if prepare > beside else 0.0) + attach)


def start_seconds(node: NodeView, need: Need, typical: Typical) -> float:
    """Seconds until an instance could be ready on `node`, room aside. Infinite: nobody knows."""
    return start_estimate(node, need, typical).seconds


def _load(
    node: NodeView, need: Need, taken: Taken, found: Approach, source: Source
) -> tuple[float, float]:
    """Seconds of waiting and of crossing on the slowest link."""
    queue, transfer, above = 0.0, 0.0, 0
    on_its_way = _is_planned(node, need.checkpoint)
    for key, pace in ((DEVICE_COPY, found.copied), (READ, found.read), (IMPORT, source.pace)):
        copy = taken.on(node, need, key[1])
        # What a tier holds, this link and those below it need not carry.
        above = max(above, copy.resident_bytes if copy else 0)
        missing = taken.size_bytes - above
        if missing <= 0:
            break
        crossing = missing * pace.per_byte + (source.way if key == IMPORT else 0.0)
        # A load that is under way is already among the queued bytes.
        counted = on_its_way or (copy is not None and copy.leased)
        wait = max(pace.wait - crossing, 0.0) if counted else pace.wait
        # All links carry at once, so that the slowest decides.
        if wait + crossing > queue + transfer:
            queue, transfer = wait, crossing
    return queue, transfer


def _load_on_disk(
    node: NodeView, need: Need, taken: Taken, found: Approach, source: Source
) -> tuple[float, float]:
    """The same where a worker reads what it needs out of a copy on SSD, once that is there."""
    copy = taken.on(node, need, Tier.SSD)
    missing = max(0, need.checkpoint.size_bytes - (copy.resident_bytes if copy else 0))
    read = need.resident_bytes * found.read.per_byte
    if not missing:
        return found.read.wait, read
    imported = missing * source.pace.per_byte + source.way
    return source.pace.wait + found.read.wait, imported + read


def _is_planned(node: NodeView, checkpoint: Checkpoint) -> bool:
    """Whether a start of it has been decided on there."""
    return any(node.key_here(plan.checkpoint) == checkpoint.key for plan in node.planned.values())
