"""Weights that no deployment uses any more leave the devices at once: memory there is dear.

On the tiers below they stay until their room is needed.
"""

from sllm.control.cluster.nodes import NodeView
from sllm.control.cluster.tiers import Tier
from sllm.control.deployments.evictions import Evictions
from sllm.control.state.state import State


class Clearing:
    """Looks at nodes when they have reported, and at all of them when a deployment was deleted."""

    def __init__(self, state: State, evictions: Evictions) -> None:
        self._state = state
        self._evictions = evictions

    def consider_all(self) -> None:
        """Has every node free what is not used any more."""
        for view in self._state.fleet.nodes.values():
            self.consider(view)

    def consider(self, view: NodeView) -> None:
        """The same for one node. What its instances still use is reported again once it is idle."""
        idle = [one for one in view.copies.values() if one.tier is Tier.DEVICE and not one.leased]
        if not idle:
            return
        deployments = self._state.deployments.values()
        used = {key for one in deployments for key in (one.model.digest, one.spec.source)}
        for copy in idle:
            if used.isdisjoint((copy.digest, *copy.sources)):
                self._evictions.begin(view.node_id, copy)
