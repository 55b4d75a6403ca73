"""Which nodes are getting which checkpoints, as this control plane has told them."""

from collections.abc import Iterator
from contextlib import contextmanager

from sllm.control.cluster.needs import Checkpoint, Need
from sllm.control.cluster.zones import NOWHERE, Zones
from sllm.control.placement import multicast
from sllm.control.placement.forms import digest_on
from sllm.control.state.fleet import Fleet
from sllm.control.types.givers import FormGivers, Givers


class Deliveries:
    """By checkpoint, in the order in which nodes were told. Belongs to the event loop."""

    def __init__(self, fleet: Fleet, zones: Zones = NOWHERE) -> None:
        self._fleet = fleet
        self._zones = zones
        self._by_key: dict[str, list[str]] = {}

    @contextmanager
    def to(self, node_id: str, checkpoint: Checkpoint) -> Iterator[Givers | None]:
        """Notes that a node is getting a checkpoint while the block lasts.

        Gives the other nodes to have it from; None: there are none, or it has all of it.
        """
        node = self._fleet.nodes.get(node_id)
        if node is None or checkpoint.digest in node.copies.whole:
            yield None
            return
        givers = multicast.givers_for(
            node,
            self._fleet.nodes,
            checkpoint.digest,
            self._fleet.holders(checkpoint.digest),
            tuple(dict.fromkeys(self._by_key.get(checkpoint.key, ()))),
            self._zones,
        )
        with self._noted(node_id, checkpoint.key):
            yield givers if self._fleet.peers else None

    def forms(self, node_id: str, need: Need) -> tuple[FormGivers, ...]:
        """Other nodes that have made ready what a node is to start."""
        node = self._fleet.nodes.get(node_id)
        if node is None or not self._fleet.peers:
            return ()
        digest = digest_on(node, need)
        holders = self._fleet.holders(digest)
        nodes, label = self._fleet.nodes, need.form_label
        return multicast.forms_for(node, nodes, digest, label, holders, self._zones)

    @contextmanager
    def _noted(self, node_id: str, key: str) -> Iterator[None]:
        nodes = self._by_key.setdefault(key, [])
        nodes.append(node_id)
        try:
            yield
        finally:
            nodes.remove(node_id)
            if not nodes:
                self._by_key.pop(key, None)
