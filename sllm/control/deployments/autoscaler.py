"""How many instances a deployment should have: a pure function of its load."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sllm.control.cluster.specs import ScalingPolicy

RAMP: Final = 8
"""Instances of one deployment that may start at once, or as many as are ready, if that is more. A
start takes a processor, a disk and memory, and a few of them tell how the others would fare."""


@dataclass(frozen=True, slots=True)
class Replica:
    """A ready instance, as the router uses it."""

    instance_id: str
    in_flight: int
    last_used: float
    """Clock's seconds."""
    kept_until: float = 0.0
    """Clock's seconds until which a request has wished it to stay."""
    background: int = 0
    """How many of those in flight give way to others."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a deployment has to do, and with what."""

    waiting: int
    """Requests in the queue."""
    ready: Sequence[Replica]
    starting: int
    """Instances that are on their way; they are never stopped here."""
    max_concurrency: int
    """Requests that one instance works on at once."""
    outdated: Sequence[Replica] = ()
    """Ready instances from before a change, which those of today replace."""
    background: int = 0
    """Requests that wait, and for which nobody does."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to change."""

    start: int = 0
    """Instances to add."""
    stop: tuple[str, ...] = ()
    """Idle instances to end."""
    retire: tuple[str, ...] = ()
    """Instances from before a change that are needed no more: they end with what they have."""
    next_expiry: float | None = None
    """Clock's seconds at which an idle instance's time is up, if nothing happens before."""


def plan(load: Load, policy: ScalingPolicy, now: float) -> Plan:
    """Starts what the queue needs, and stops what has been idle for too long."""
    present = len(load.ready) + load.starting
    ramp = max(RAMP, len(load.ready)) - load.starting
    wanted = _wanted(load, policy, present)
    start = max(0, min(ramp, wanted - present))
    retire = _replaced(load, wanted)
    if load.waiting or load.background:
        return Plan(start, retire=retire)

    def expiry(replica: Replica) -> float:
        return max(replica.last_used + policy.keep_alive, replica.kept_until)

    idle = sorted((one for one in load.ready if not one.in_flight), key=expiry)
    spare = max(0, present - policy.min_replicas)
    surplus = max(0, present - policy.max_replicas)
    expiries = [expiry(one) for one in idle[:spare]]
    due = sum(moment <= now for moment in expiries)
    stop = tuple(one.instance_id for one in idle[: max(due, min(surplus, spare))])
    return Plan(start, stop, retire, min(expiries[len(stop) :], default=None))


def _replaced(load: Load, wanted: int) -> tuple[str, ...]:
    """Those from before a change but for as many as are lacking of today's; the idle go first."""
    lacking = max(0, wanted - len(load.ready))
    busiest_last = sorted(load.outdated, key=lambda one: (one.in_flight, one.last_used))
    leaving = max(0, len(busiest_last) - lacking)
    return tuple(one.instance_id for one in busiest_last[:leaving])


def _requests(load: Load) -> int:
    """Those that instances are wanted for: while others wait, what gives way to them is none."""
    replicas = (*load.ready, *load.outdated)
    in_flight = sum(one.in_flight for one in replicas)
    if load.waiting:
        return load.waiting + in_flight - sum(one.background for one in replicas)
    return load.background + in_flight


def _wanted(load: Load, policy: ScalingPolicy, present: int) -> int:
    """Instances that there should be, idle ones aside."""
    requests = _requests(load)
    target = min(policy.target_concurrency or load.max_concurrency, load.max_concurrency)
    more = math.ceil(max(0, requests - present * target) / target)
    return max(policy.min_replicas, min(policy.max_replicas, present + more))
