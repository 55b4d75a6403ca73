"""Starts that have failed: where to try next, when, and what those who wait are told."""

from dataclasses import dataclass, replace

from sllm import errors

MAX_ATTEMPTS = 2
"""Starts that are made for the same waiting requests: a second one, on another node."""
_LONGEST_PAUSE = 60.0


@dataclass(frozen=True, slots=True)
class FailedStarts:
    """Failed starts of one deployment since the last that succeeded."""

    error: errors.SllmError
    """Of the last."""
    nodes: frozenset[str] = frozenset()
    """Where they failed, for the requests that still wait."""
    attempts: int = 0
    """Made for the requests that still wait."""
    in_a_row: int = 0
    retry_at: float = 0.0
    """Clock's seconds before which none is started that no request waits for."""

    @property
    def exhausted(self) -> bool:
        """Whether those who wait should be told."""
        return self.attempts >= MAX_ATTEMPTS

    def forgiven(self) -> "FailedStarts":
        """The same for requests that come later, which may try every node again."""
        return replace(self, nodes=frozenset(), attempts=0)


def another(
    before: FailedStarts | None, node_id: str, error: errors.SllmError, now: float
) -> FailedStarts:
    """The failed starts, with one more on a node, for a reason that callers will read."""
    in_a_row = before.in_a_row + 1 if before else 1
    nodes = before.nodes if before else frozenset()
    if not isinstance(error, errors.NodeLost):  # a lost node that comes back is as good as new
        nodes |= {node_id}
    return FailedStarts(
        error=error,
        nodes=nodes,
        attempts=before.attempts + 1 if before else 1,
        in_a_row=in_a_row,
        retry_at=now + min(_LONGEST_PAUSE, 2.0**in_a_row / 2),
    )


def start_error(deployment: str, node_id: str, error: errors.SllmError) -> errors.SllmError:
    """What callers are told of a start that failed: the node's own reason, where it has one."""
    unclear = isinstance(error, errors.Internal | errors.Cancelled | errors.DeadlineExceeded)
    cls = errors.StartFailed if unclear else type(error)
    told = cls(
        f"{deployment} could not be started on {node_id}: {error}",
        metadata={**error.metadata, "node_id": node_id},
        retry_after=error.retry_after,
    )
    told.__cause__ = error
    return told
