"""Requests that wait for an instance, over all deployments: by priority, and by how long they wait.

A step of priority is worth some seconds of waiting. So each request has a turn, the moment at
which it came less what its priority is worth, and the least turn is served first: the order of
two requests never changes, those of one priority are served in the order of their coming, and a
request of a low priority is passed over only by those that come soon after it: within the seconds
that the difference of their priorities is worth.
"""

from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator
from typing import Generic, Protocol, TypeVar


class Waiting(Protocol):
    """What the queue has to know of a request."""

    @property
    def deployment(self) -> str:
        """Name of the deployment that it is for."""
        ...

    @property
    def enqueued_at(self) -> float:
        """Clock's seconds since which it waits."""
        ...

    @property
    def turn(self) -> float:
        """Clock's seconds; the least is served first. Does not change while it waits."""
        ...


Request = TypeVar("Request", bound=Waiting)


def turn(came_at: float, priority: int, step_seconds: float) -> float:
    """When it is a request's turn.

    Args:
        came_at: Clock's seconds.
        priority: The higher, the sooner.
        step_seconds: What one step of priority is worth.
    """
    return came_at - priority * step_seconds


class RequestQueue(Generic[Request]):
    """A line per deployment; the head of each is the one whose turn it is."""

    def __init__(self) -> None:
        self._lines: dict[str, list[Request]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, request: Request) -> None:
        """Puts a request into its deployment's line; one that comes back regains its place."""
        insort(self._lines.setdefault(request.deployment, []), request, key=_turn)
        self._count += 1

    def pop(self, deployment: str) -> Request:
        """Takes the head of a deployment's line, which must not be empty."""
        request = self._lines[deployment][0]
        self.remove(request)
        return request

    def remove(self, request: Request) -> None:
        """Takes a request out, wherever it stands; one that is not there is no error."""
        line = self._lines.get(request.deployment)
        if line is None or request not in line:
            return
        line.remove(request)
        self._count -= 1
        if not line:
            del self._lines[request.deployment]

    def head(self, deployment: str) -> Request | None:
        """The next one to be served of those that wait for a deployment."""
        line = self._lines.get(deployment)
        return line[0] if line else None

    def waited(self, deployment: str, now: float) -> float:
        """Seconds that the one that waits longest has waited; it need not be the next one.

        0 if there is none.
        """
        line = self._lines.get(deployment, ())
        return now - min((request.enqueued_at for request in line), default=now)

    def count(self, deployment: str) -> int:
        """How many wait for a deployment."""
        return len(self._lines.get(deployment, ()))

    def counts(self) -> dict[str, int]:
        """How many wait, of each deployment that is waited for. Another thread may ask."""
        return {deployment: len(line) for deployment, line in tuple(self._lines.items())}

    def ahead(self, deployment: str, turn: float) -> int:
        """How many of those that wait for a deployment would be served before one of this turn."""
        return bisect_right(self._lines.get(deployment, []), turn, key=_turn)

    def of(self, deployment: str) -> Iterator[Request]:
        """Those that wait for a deployment, in their order; may be changed meanwhile."""
        return iter(tuple(self._lines.get(deployment, ())))

    def deployments(self) -> Iterable[str]:
        """Names of the deployments for which any waits."""
        return tuple(self._lines)


def _turn(request: Waiting) -> float:
    return request.turn
