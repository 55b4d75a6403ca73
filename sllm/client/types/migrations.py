"""What has come of migrations. Times are seconds."""

from dataclasses import dataclass

from sllm.client.types.enums import MigrationOutcome
from sllm.client.types.events import CacheMove


@dataclass(frozen=True, slots=True)
class RequestMigration:
    """What has come of one generation that was to move."""

    request_id: str
    """Its request."""
    outcome: MigrationOutcome
    """Whether it has moved."""
    rounds: int = 0
    """In which its tokens were sent while it went on."""
    tokens: int = 0
    """Of prompt and generation."""
    duration: float = 0.0
    """Seconds from the first round until it went on at the destination."""
    cutover: float = 0.0
    """Seconds from its stop at the source until it went on at the destination."""
    gap: int = 0
    """Of `tokens`, those that were sent after the last round: the destination computed them while
    it stood still."""
    cache: CacheMove | None = None
    """How its KV cache has come, if it has moved."""
    reason: str = ""
    """The error's reason for which it has stayed, if it has."""
    message: str = ""
    """What that error says."""


@dataclass(frozen=True, slots=True)
class Migration:
    """What has come of a migration."""

    node_id: str
    """Destination."""
    instance_id: str
    """The instance there."""
    started: bool
    """Whether the instance was started for it."""
    requests: tuple[RequestMigration, ...]
    """Every generation that was to move."""
    estimate: float | None = None
    """Seconds that moving them was expected to take, once the instance was ready. None: nothing
    had moved, nor any prompt been computed, from which it could have been learned."""

    @property
    def duration(self) -> float:
        """Seconds that moving them has taken."""
        return max((one.duration for one in self.requests), default=0.0)
