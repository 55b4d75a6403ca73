"""All nodes that are large enough for a model, in one go: the inner loop of placement.

Most nodes hold nothing of a checkpoint; for them the estimate is a formula of its size, whose
coefficients stand in a table with a column for each node. The table is handed on from snapshot to
snapshot, with new columns for the nodes that have changed, so that a decision costs a few passes
over arrays. Only the few nodes that hold some of the checkpoint are looked at one by one.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sllm.control.cluster.init_times import InitKey
from sllm.control.cluster.needs import Need
from sllm.control.cluster.nodes import NodeView
from sllm.control.cluster.snapshot import Snapshot, Typical
from sllm.control.cluster.specs import TRANSFORMERS, VLLM
from sllm.control.cluster.tiers import Tier
from sllm.control.placement import room
from sllm.control.placement.decisions import Demand
from sllm.control.placement.fitting import unfit
from sllm.control.placement.start_estimate import (
    approach,
    need_on,
    start_seconds,
    way_of_fetch,
    weights_on,
)

Numbers = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

_TIERS = (Tier.DEVICE, Tier.DRAM, Tier.SSD)
"""Those that a node's own links lead to, the highest first."""


class Rank(NamedTuple):
    """A node as a place to start."""

    seconds: float
    """Of the estimate, and of the way there. Infinite: nobody knows."""
    distance: float
    """Of these, `Demand.distance`."""
    lacks_room: bool
    """Whether something would have to end first."""
    node_id: str


class Table:
    """What the formula needs of every node; never changed once it is made."""

    def __init__(self, nodes: Mapping[str, NodeView], typical: Typical) -> None:
        self.node_ids = sorted(nodes)
        self.index = {node_id: index for index, node_id in enumerate(self.node_ids)}
        columns = [_column(nodes[node_id], typical) for node_id in self.node_ids]
        self.numbers: Numbers = np.array(columns, np.float64).reshape(-1, len(_Column._fields)).T
        self.numbers = np.ascontiguousarray(self.numbers)
        self._typical = typical
        self._borrowing = {key for key in nodes if not approach(nodes[key], typical).own}

    def updated(
        self, nodes: Mapping[str, NodeView], changed: Iterable[str], typical: Typical
    ) -> "Table":
        """The table of the same nodes, once some have changed.

        Columns that lean on `typical` are worked out anew if that is another one.
        """
        stale = set(changed)
        if typical is not self._typical:
            stale |= self._borrowing
        if not stale:
            return self
        table = Table.__new__(Table)
        table.node_ids, table.index = self.node_ids, self.index
        table.numbers = self.numbers.copy()
        for node_id in stale:
            table.numbers[:, self.index[node_id]] = _column(nodes[node_id], typical)
        table._typical = typical
        borrowing = {key for key in stale if not approach(nodes[key], typical).own}
        table._borrowing = (self._borrowing - stale) | borrowing
        return table


class _Column(NamedTuple):
    """A node in the table; see `start_estimate.Approach`.

    Times are in seconds, or in seconds per byte; all else is in bytes, where nothing else is said.
    """

    import_wait: float
    import_per_byte: float
    fetch_wait: float
    fetch_per_byte: float
    read_wait: float
    read_per_byte: float
    copy_wait: float
    copy_per_byte: float
    prepare: float
    prepare_per_byte: float
    attach: float
    attach_per_byte: float
    weights_capacity: float
    kv_capacity: float
    capacity: float
    """For both together."""
    beside_in_empty: float
    """Memory that one instance without copies leaves on the empty node; see `room.beside`."""
    copies_here: float
    """1: its copies are in that memory. 0: they are on devices."""
    weights_free: float
    kv_free: float
    free: float
    beside: float
    """Memory that an instance leaves of whose copies nothing is known."""
    beside_plain: float
    """The same of one that has none."""
    on_vllm: float
    """Seconds until the engine can be had there. Infinite: the node does not have it."""
    on_transformers: float
    max_tensor_parallel: float
    """Devices that run one instance together there."""


def _column(node: NodeView, typical: Typical) -> _Column:
    imported, fetched, read, copied, prepare, attach, _ = approach(node, typical)
    return _Column(
        *imported,
        *fetched,
        *read,
        *copied,
        *prepare,
        *attach,
        *room.capacity(node),
        room.beside_in_empty(node),
        float(not node.facts.devices),
        *room.free(node),
        room.beside(node, None),
        room.beside(node, 0),
        node.engine_wait(VLLM),
        node.engine_wait(TRANSFORMERS),
        node.facts.max_tensor_parallel,
    )


def table_of(snapshot: Snapshot) -> Table:
    """The snapshot's table: handed on to it, or made for it."""
    table: Table | None = snapshot.memo.get(Table)
    if table is None:
        table = snapshot.memo[Table] = Table(snapshot.nodes, snapshot.typical)
    return table


class Ranking:
    """The nodes that are large enough for a model, and have its engine."""

    def __init__(self, snapshot: Snapshot, need: Need, demand: Demand | None = None) -> None:
        """`demand`: of those who wait. None: nobody, to whom a node would be near."""
        table = table_of(snapshot)
        columns: Any = _Column(*table.numbers)  # of all nodes at once
        size = need.checkpoint.size_bytes
        self._node_ids = table.node_ids
        self._large = _are_large(columns, need)
        ways = _ways(snapshot, table, need)
        self._seconds = _far_seconds(columns, need, snapshot.typical, ways)
        self._to_cross: Numbers = np.full(len(table.node_ids), float(size * len(_TIERS)))
        self._kv_free: Numbers = columns.kv_free
        self._lacks_room = _lack_room(columns, need)
        for node_id in snapshot.holders.get(need.checkpoint.key, ()):
            index, node = table.index[node_id], snapshot.nodes[node_id]
            near = _near(node, need, snapshot.typical)
            self._large[index] = near.large
            self._seconds[index], self._to_cross[index] = near.seconds, near.to_cross
            self._lacks_room[index] = near.lacks_room
        self._distances = _distances(snapshot, table, demand)
        self._seconds = self._seconds + self._distances

    @cached_property
    def node_ids(self) -> list[str]:
        """Those that are large enough and have the engine, in order of id."""
        return [self._node_ids[index] for index in np.flatnonzero(self._large)]

    def best_first(self) -> Iterator[Rank]:
        """Yields the nodes, the lowest estimate first.

        Among equals the one where the fewest bytes are still to cross a link, then one that has
        room, then the one with the most free KV budget, then by id.
        """
        indices = np.flatnonzero(self._large)
        if not len(indices):
            return
        first = self._best(indices)
        yield self._rank(first)
        rest = indices[indices != first]
        # lexsort takes the last key as the first one to compare by.
        keys = (-self._kv_free[rest], self._lacks_room[rest], self._to_cross[rest])
        for index in rest[np.lexsort((*keys, self._seconds[rest]))]:
            yield self._rank(int(index))

    def _best(self, indices: npt.NDArray[np.intp]) -> int:
        """The first of them, without sorting the others: seldom is more asked for."""
        keys: npt.NDArray[Any]
        for keys in (self._seconds, self._to_cross, self._lacks_room, -self._kv_free):
            values = keys[indices]
            indices = indices[values == values.min()]
            if len(indices) == 1:
                break
        return int(indices[0])

    def _rank(self, index: int) -> Rank:
        seconds, lacks_room = float(self._seconds[index]), bool(self._lacks_room[index])
        return Rank(seconds, float(self._distances[index]), lacks_room, self._node_ids[index])


def _distances(snapshot: Snapshot, table: Table, demand: Demand | None) -> Numbers:
    """`Demand.distance` to each node."""
    if demand and not demand.origins.anywhere:
        nodes = (snapshot.nodes[node_id] for node_id in table.node_ids)
        return np.fromiter(map(demand.distance, nodes), np.float64, len(table.node_ids))
    distances = np.zeros(len(table.node_ids))
    for node_id, seconds in demand.kept.items() if demand else ():
        if (index := table.index.get(node_id)) is not None:
            distances[index] = -seconds
    return distances


def _ways(snapshot: Snapshot, table: Table, need: Need) -> Numbers | None:
    """What the way costs to those that each node has a checkpoint from; see `way_of_fetch`.

    None: it costs nothing, as where nobody says in which zone who holds it is.
    """
    typical, checkpoint = snapshot.typical, need.checkpoint
    if not any(typical.held.by_digest.get(checkpoint.digest, ())):
        return None
    nodes = (snapshot.nodes[node_id] for node_id in table.node_ids)
    ways = (way_of_fetch(node, checkpoint, typical) or 0.0 for node in nodes)
    return np.fromiter(ways, np.float64, len(table.node_ids))


def _are_large(columns: Any, need: Need) -> Flags:
    size, least = need.pool_bytes, need.least_kv_bytes
    fits = (columns.weights_capacity >= size) & (columns.capacity >= size + least)
    copies = columns.copies_here * (need.private_bytes or 0)
    large: Flags = fits & (columns.kv_capacity >= least) & (columns.beside_in_empty >= copies)
    large &= np.isfinite(_engine_wait(columns, need))
    large &= columns.max_tensor_parallel >= need.tensor_parallel
    if need.on_disk:
        large &= columns.copies_here > 0
    return large


def _engine_wait(columns: Any, need: Need) -> Numbers:
    """As `NodeView.engine_wait`, of all nodes."""
    by_engine = {VLLM: columns.on_vllm, TRANSFORMERS: columns.on_transformers}
    wait: Numbers = by_engine.get(need.engine, np.zeros_like(columns.on_vllm))
    return wait


def _lack_room(columns: Any, need: Need) -> Flags:
    size = need.pool_bytes
    kv_bytes = np.minimum(need.kv_bytes, columns.kv_capacity)
    np.minimum(kv_bytes, columns.capacity - size, out=kv_bytes)
    lack: Flags = (columns.weights_free < size) | (columns.kv_free < kv_bytes)
    lack |= (columns.free < size + kv_bytes) | _lack_memory(columns, need)
    return lack


def _lack_memory(columns: Any, need: Need) -> Flags:
    """Of nodes that run nothing of the checkpoint; see `NodeView.own_expected`."""
    unknown = need.private_bytes is None
    beside: Numbers = columns.beside if unknown else columns.beside_plain
    lack: Flags = beside < columns.copies_here * (need.private_bytes or 0)
    return lack


def _far_seconds(columns: Any, need: Need, typical: Typical, ways: Numbers | None) -> Numbers:
    """As `start_estimate.start_seconds`, for nodes that hold nothing of the checkpoint."""
    size = need.checkpoint.size_bytes
    by_model, key = typical.init_times.by_model, InitKey(need.checkpoint.digest, need.engine)
    # Starts from another form tell of it as well, as in `init_seconds`.
    seen = by_model.get(key) or by_model.get(key._replace(ready_made=True))
    if seen:
        prepare, attach = seen.prepare, seen.attach
    else:
        prepare = columns.prepare + size * columns.prepare_per_byte
        attach = columns.attach + size * columns.attach_per_byte
    ready = typical.slowness * prepare + _engine_wait(columns, need)
    if need.checkpoint.digest in typical.held:
        load = columns.fetch_wait + size * columns.fetch_per_byte
        load += 0.0 if ways is None else ways
    else:
        load = columns.import_wait + size * columns.import_per_byte
    if not need.on_disk:
        np.maximum(load, columns.read_wait + size * columns.read_per_byte, out=load)
        np.maximum(load, columns.copy_wait + size * columns.copy_per_byte, out=load)
    else:
        load += columns.read_wait + need.resident_bytes * columns.read_per_byte
    seconds: Numbers = np.maximum(load, ready) + typical.slowness * attach
    return seconds


class _Near(NamedTuple):
    """A node that holds some of a checkpoint, or has started it before."""

    large: bool
    """Enough, and has the engine."""
    seconds: float
    to_cross: int
    """Bytes still to cross links."""
    lacks_room: bool


def _near(node: NodeView, need: Need, typical: Typical) -> _Near:
    """Works a node out by itself."""
    known: tuple[Typical, _Near] | None = node.memo.get(need)
    if known and known[0] is typical:
        return known[1]
    here = need_on(node, need, typical)
    found = _Near(
        unfit(node, here) is None,
        start_seconds(node, need, typical),
        _to_cross(node, need, typical),
        not room.shortage(node, here, room.kv_grant(node, here)).none,
    )
    node.memo[need] = (typical, found)
    return found


def _to_cross(node: NodeView, need: Need, typical: Typical) -> int:
    """Bytes that each tier lacks of what neither it nor one above it holds, taken together."""
    above, lacking, taken = 0, 0, weights_on(node, need, typical)
    for tier in _TIERS:
        copy = taken.on(node, need, tier)
        above = max(above, copy.resident_bytes if copy else 0)
        lacking += taken.size_bytes - above
    return lacking
