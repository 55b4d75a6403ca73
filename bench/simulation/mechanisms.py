"""What a simulation may be run with and without, each by the code that the control plane has."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sllm.control.cluster.instances import InstanceState
from sllm.control.cluster.needs import Need
from sllm.control.cluster.usage import Limit, Use
from sllm.control.cluster.zones import NOWHERE, Origins, Zones
from sllm.control.config import ControlConfig
from sllm.control.deployments.layers import layers_of
from sllm.control.requests.concurrency import LEAST_SAMPLES, Window, tuned
from sllm.control.requests.keep_times import keep_times
from sllm.control.requests.pauses import Arrivals, Pauses
from sllm.control.state.fleet import Fleet

WORTH: Final = ControlConfig(directory=Path()).idle_worth_seconds


@dataclass(frozen=True, slots=True)
class Mechanisms:
    """Which of them are on."""

    keep_alive: float | None = None
    """Seconds that an idle instance stays, at most. None: for as long as loading takes."""
    learned: bool = False
    """Whether it stays for less, by the pauses between requests."""
    zones: Zones = NOWHERE
    """The ways that requests have, whether they are counted or not."""
    near: bool = False
    """Whether they are."""
    slowdown: float = 0.0
    """By how much of itself each request more makes the tokens of an instance slower."""
    target: float | None = None
    """Times the time that a token takes alone that it may take. None: there is no target."""
    peers: bool = False
    """Whether nodes have models from one another."""
    kept_bytes: int = 0
    """Of each node's pool, for KV caches of what has ended. 0: none are kept."""
    moves_caches: bool = False
    """Whether a move sends the KV cache where that is sooner than computing it."""

    def origins(self, zones: Sequence[str]) -> Origins:
        """Of requests from these zones, as placement may know of them."""
        return Origins.of(self.zones, zones if self.near else ())

    def way(self, origin: str, zone: str) -> float:
        """Seconds of the way that is counted."""
        return self.zones.seconds(origin, zone) if self.near else 0.0


@dataclass(slots=True)
class Keeper:
    """Works keep times out as the control plane's `Keeping` does."""

    fleet: Fleet
    arrivals: Arrivals
    _known: dict[str, tuple[Pauses, tuple[float, ...] | None]] = field(default_factory=dict)
    """By deployment, with the pauses that they are of."""

    def times(self, need: Need, longest: float) -> tuple[float, ...] | None:
        """Of a deployment's instance and its weights. None: too little is known."""
        present = self.fleet.instances_of(need.deployment)
        ready = [one for one in present if one.state is InstanceState.READY]
        pauses = self.arrivals.of(need.deployment)
        if not ready or not pauses.suffice:
            return None
        known = self._known.get(need.deployment)
        if known is None or known[0] is not pauses:  # they change with these alone, or hardly
            node = self.fleet.nodes[ready[0].node_id]
            layers = layers_of(node, ready[0], need, self.fleet.typical, WORTH, longest)
            known = pauses, keep_times(pauses, layers) if layers else None
            self._known[need.deployment] = known
        return known[1]


@dataclass(slots=True)
class Tuner:
    """Looks at each instance as the control plane does, whenever one of its requests has ended.

    That tells of as many tokens as a look takes: a request has more of them than that.
    """

    target: float
    _windows: dict[str, Window] = field(default_factory=dict)

    def ended(self, instance_id: str, use: Use, pace: float, most: int, now: float) -> Limit:
        """What the instance is tuned to by a request whose tokens took `pace` times as long."""
        window = self._windows.setdefault(instance_id, Window(now, []))
        for _ in range(LEAST_SAMPLES):
            window.add(pace, use.in_flight)
        limit = use.limit or Limit(most)
        if not window.suffices(now):
            return limit
        del self._windows[instance_id]
        return tuned(limit, window, self.target, most, now)


PLAIN: Final = Mechanisms()
