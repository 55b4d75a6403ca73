"""The cluster at one moment, as placement sees it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from sllm.control.cluster.held import NOTHING_HELD, Held
from sllm.control.cluster.init_times import NO_INIT_TIMES, InitTimes
from sllm.control.cluster.instances import Instance
from sllm.control.cluster.needs import Need
from sllm.control.cluster.nodes import NodeView
from sllm.control.cluster.tiers import LinkKey
from sllm.control.cluster.usage import MigrationCost, Running, Use


@dataclass(frozen=True, slots=True)
class Typical:
    """What nodes of this fleet observe, for those that have not observed it themselves."""

    bandwidths: Mapping[LinkKey, float]
    """Median bytes per second of each link that any node has observed."""
    init_time: float | None
    """Median seconds. None: no node has observed one."""
    init_times: InitTimes = NO_INIT_TIMES
    """Medians for each model."""
    held: Held = NOTHING_HELD
    """Checkpoints that any node has all of, which others may have from it."""
    slowness: float = 1.0
    """What starts take now, besides the load, for each second that init times let expect."""


UNKNOWN = Typical({}, None)


@dataclass(frozen=True)
class Snapshot:
    """All that a placement decision may look at."""

    nodes: Mapping[str, NodeView]
    instances: Mapping[str, tuple[Instance, ...]] = field(default_factory=dict)
    """Present instances of every deployment."""
    uses: Mapping[str, Use] = field(default_factory=dict)
    """By instance, of those that take requests."""
    holders: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Nodes that hold any part of a checkpoint or have started it, by its digest and sources."""
    protected: frozenset[str] = frozenset()
    """Instances that a deployment's min_replicas keeps."""
    outdated: frozenset[str] = frozenset()
    """Instances that others are to replace, since their deployment has changed."""
    typical: Typical = UNKNOWN
    needs: Mapping[str, Need] = field(default_factory=dict)
    """Of all deployments."""
    running: Mapping[str, tuple[Running, ...]] = field(default_factory=dict)
    """Requests under way, by instance."""
    migration: MigrationCost | None = None
    """None: nobody knows yet, and nothing is migrated."""
    stop_seconds: float = 0.0
    """What ending an idle instance takes, as observed."""
    memo: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)
    """What was worked out about this snapshot, or about an earlier one and still holds."""

    @cached_property
    def idle_nodes(self) -> frozenset[str]:
        """Nodes with instances that have no request that anybody waits for."""
        return frozenset(use.node_id for use in self.uses.values() if not use.is_busy)
