"""How a deployment is doing, as callers are told."""

from dataclasses import dataclass
from enum import IntEnum

from sllm.control.cluster.specs import Deployment, DeploymentState
from sllm.control.cluster.tiers import Tier


class LoadPhase(IntEnum):
    """What kind of work a load is doing; the numbers are those of the protocol."""

    IMPORT = 1
    READ = 2
    INIT = 3
    COPY = 4


@dataclass(frozen=True, slots=True)
class Loading:
    """How far a load is."""

    phase: LoadPhase
    from_tier: Tier | None
    """The tier that bytes are read from in this phase."""
    loaded_bytes: int
    total_bytes: int
    remaining: float | None = None
    """Seconds until it is done, if they are known."""


@dataclass(frozen=True, slots=True)
class Learned:
    """What the pauses between a deployment's requests have taught."""

    keep_alive: float
    """Seconds that an idle instance stays."""
    keep_weights: float
    """Seconds from then on for which its weights are worth their room in DRAM."""


@dataclass(frozen=True, slots=True)
class Tuned:
    """What a target for the time between tokens has come to, on average over instances."""

    requests: int
    """That an instance works on at once."""
    time_per_token: float
    """Seconds between two tokens of a request, as seen last."""


@dataclass(frozen=True, slots=True)
class DeploymentStatus:
    """A deployment at one moment."""

    deployment: Deployment
    state: DeploymentState
    message: str = ""
    """For FAILED: what went wrong."""
    ready_instances: int = 0
    queued_requests: int = 0
    loading: Loading | None = None
    """While PREPARING: how far the checkpoint has come."""
    learned: Learned | None = None
    """None: nothing, or not enough yet, and its policy's keep_alive holds."""
    tuned: Tuned | None = None
    """None: nothing was seen yet, or there is no target."""
