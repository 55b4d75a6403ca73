"""How a control plane is set up."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ControlConfig:
    """Everything that `sllm control` can be told."""

    directory: Path
    """Where what has to survive a restart is kept; made if it is not there."""
    listen_address: str = "127.0.0.1:50051"
    """host:port to serve on; port 0 takes any that is free."""
    lease_seconds: float = 3.0
    """How long a node counts as a member without another message."""
    node_patience_seconds: float = 10.0
    """How long requests wait for a node to appear before they fail."""
    drain_patience_seconds: float = 5.0
    """How long a request waits for room before busy instances of other deployments are drained."""
    drain_grace_seconds: float = 600.0
    """Time that running requests have when their instance is drained for others."""
    residency_factor: float = 1.0
    """An instance that comes back after it had to make room for others keeps its room for as many
    times as its start has taken: at most half of the time goes into taking turns."""
    longest_residency_seconds: float = 30.0
    """The longest time that it keeps its room for this reason."""
    orphan_grace_seconds: float = 600.0
    """How long instances are kept that no deployment explains; their deployment may be made again,
    as after a loss of what was stored."""
    max_queued: int = 10_000
    """Requests that may wait, over all deployments; more are refused."""
    max_queued_per_deployment: int = 1_000
    """Requests that may wait for one deployment; more are refused."""
    priority_step_seconds: float = 10.0
    """Waiting for so long is worth one step of priority, so that nobody is passed over for good."""
    migrate: bool = True
    """Whether running instances may be migrated away to make room for others."""
    start_timeout_seconds: float = 1800.0
    """Longest time that the start of an instance, or the preparation of a checkpoint, may take."""
    linger_seconds: float = 15.0
    """How long nodes go on with requests when this control plane is gone; callers read them on."""
    stop_grace_seconds: float = 2.0
    """Time that calls have to end when the process is asked to."""
    max_batch_requests: int = 50_000
    """Requests of one batch; more are refused."""
    max_batch_bytes: int = 256 << 20
    """Bytes that they may have together."""
    max_batches: int = 1_000
    """Batches that are kept, those included that have ended; more are refused."""
    batch_retention_seconds: float = 7 * 24 * 3600.0
    """How long a batch that has ended can be read."""
    metrics_port: int | None = None
    """Port for Prometheus; 0 takes any that is free. None: no metrics are served."""

    @property
    def state_path(self) -> Path:
        """The SQLite file."""
        return self.directory / "state.db"

    @property
    def batches_path(self) -> Path:
        """That of batches: many and large writes, which nothing else is to wait for."""
        return self.directory / "batches" / "batches.db"
