"""Starts of instances, from the decision to their end."""

from dataclasses import dataclass

from sllm import errors
from sllm.control.cluster.instances import Instance
from sllm.control.cluster.specs import Deployment
from sllm.control.types.status import Loading


@dataclass(slots=True)
class StartUnderWay:
    """An instance between the decision to start it and its being ready."""

    deployment: Deployment
    instance: Instance
    decided_at: float
    """Clock's seconds."""
    estimate: float | None
    """Seconds that placement expects. None: not known."""
    called_at: float = 0.0
    """When the node was told. 0: not yet."""
    loading: Loading | None = None
    """How far it is, as last heard."""
    for_move: bool = False
    """Whether it is to take over what runs elsewhere, and no request waits for it."""
    withdrawn: bool = False
    """Nobody wants it any more; it ends as soon as it can."""
    error: errors.SllmError | None = None
    """Why it has failed, if it has."""
