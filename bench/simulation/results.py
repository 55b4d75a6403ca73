"""What simulations of one setting came to, and whether the cluster was busy in them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.simulation.control import Simulation

WARM_UP_SHARE = 0.25
"""Of the requests: they come first, fill the pools as the policy would, and are not counted."""
LEAST_BUSY, MOST_BUSY = 0.4, 0.9
"""Between these a cluster is busy and not saturated, if its queue does not grow."""
MOST_LEFT = 0.02
"""Share of a trace's requests that may be waiting when the last one comes; more: it grows."""
AT_ONCE_SECONDS = 0.001
"""Whoever waits for less is served at once."""
MOST_WAITING = 0.01
"""Share of the requests that may have to wait for a GPU even if starts took no time. Where more do,
bursts overrun the cluster, and P99 tells how long others hold it, whatever placement does."""
NOT_SERVED = "Seconds in which a request was not served: until it was, and when it was interrupted."


@dataclass(frozen=True, slots=True)
class Outcome:
    """One trace under one policy."""

    latencies: np.ndarray
    """Start-up latency of each counted request, in seconds; see `NOT_SERVED`."""
    first_waits: np.ndarray
    """Their parts until each request was served for the first time."""
    pauses: np.ndarray
    """Of each counted request that was interrupted, the seconds for which it was, in all."""
    utilisation: float
    """Share of all GPUs' time that requests and loads took."""
    left: float
    """Share of the requests that were waiting when the last one came."""
    starts: int
    migrations: int
    """Requests that were migrated."""
    preemptions: int
    """Requests that were stopped."""
    decision_seconds: np.ndarray
    """Real time of every decision."""


def outcome_of(simulation: Simulation) -> Outcome:
    """What came out of a simulation that has run."""
    requests = simulation.requests
    counted = requests[round(WARM_UP_SHARE * len(requests)) :]
    return Outcome(
        latencies=np.array([one.waited for one in counted]),
        first_waits=np.array([one.first_wait for one in counted]),
        pauses=np.array([pause for one in counted if (pause := one.paused) > 0]),
        utilisation=simulation.utilisation,
        left=simulation.waiting_at_last / len(requests),
        starts=len(simulation.instances.starts),
        migrations=simulation.instances.migrations,
        preemptions=simulation.instances.preemptions,
        decision_seconds=np.array(simulation.decision_seconds),
    )


@dataclass(frozen=True, slots=True)
class Cell:
    """One policy at one rate: several traces together."""

    policy: str
    dataset: str
    rate: float
    """Requests per second."""
    outcomes: Sequence[Outcome]

    @property
    def latencies(self) -> np.ndarray:
        """Of all traces, in seconds."""
        return np.concatenate([one.latencies for one in self.outcomes])

    def percentile(self, percent: float) -> float:
        """Of the start-up latencies of all traces, in seconds."""
        return float(np.percentile(self.latencies, percent))

    def pause(self, percent: float) -> float:
        """Of the interrupted requests' pauses, in seconds; not a number if there are none."""
        pauses = np.concatenate([one.pauses for one in self.outcomes])
        return float(np.percentile(pauses, percent)) if len(pauses) else float("nan")

    @property
    def utilisation(self) -> float:
        """Mean over the traces."""
        return float(np.mean([one.utilisation for one in self.outcomes]))

    @property
    def waiting(self) -> float:
        """Share of the requests that were not served at once."""
        return float(np.mean(self.latencies > AT_ONCE_SECONDS))

    @property
    def grows(self) -> bool:
        """Whether the queue grew in any of the traces."""
        return any(one.left > MOST_LEFT for one in self.outcomes)

    @property
    def state(self) -> str:
        """How busy the cluster was."""
        if self.utilisation < LEAST_BUSY:
            return "idle"
        return "saturated" if self.grows or self.utilisation > MOST_BUSY else "busy"
