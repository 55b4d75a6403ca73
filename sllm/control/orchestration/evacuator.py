"""Who migrates instances in the background, as the orchestrator sees it."""

from collections.abc import Sequence
from typing import Protocol

from sllm.control.cluster.instances import Instance
from sllm.control.placement.decisions import Move


class Evacuator(Protocol):
    """Returns at once; what fails to move goes on where it is."""

    def move_away(self, instance: Instance) -> None:
        """Has what an instance runs go on elsewhere, wherever that is soonest."""
        ...

    def make_way(self, name: str, moves: Sequence[Move]) -> None:
        """Has instances go on elsewhere for a deployment, and ends with `Placer.way_made`."""
        ...
