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
