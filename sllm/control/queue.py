"""Requests that wait for an instance: first come, first served, over all deployments."""

from collections import deque
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


Request = TypeVar("Request", bound=Waiting)


class RequestQueue(Generic[Request]):
    """A line per deployment; the head of each is its oldest request."""

    def __init__(self) -> None:
        self._lines: dict[str, deque[Request]] = {}

    def __len__(self) -> int:
        return sum(len(line) for line in self._lines.values())

    def add(self, request: Request) -> None:
        """Puts a request at the end of its deployment's line."""
        self._lines.setdefault(request.deployment, deque()).append(request)

    def add_first(self, request: Request) -> None:
        """Puts a request that had been served already back to the front."""
        self._lines.setdefault(request.deployment, deque()).appendleft(request)

    def pop(self, deployment: str) -> Request:
        """Takes the oldest request of a deployment that has any."""
        line = self._lines[deployment]
        request = line.popleft()
        if not line:
            del self._lines[deployment]
        return request

    def remove(self, request: Request) -> None:
        """Takes a request out, wherever it stands; one that is not there is no error."""
        line = self._lines.get(request.deployment)
        if line is None or request not in line:
            return
        line.remove(request)
        if not line:
            del self._lines[request.deployment]

    def head(self, deployment: str) -> Request | None:
        """The oldest request of a deployment."""
        line = self._lines.get(deployment)
        return line[0] if line else None

    def count(self, deployment: str) -> int:
        """How many wait for a deployment."""
        line = self._lines.get(deployment)
        return len(line) if line else 0

    def of(self, deployment: str) -> Iterator[Request]:
        """Those that wait for a deployment, oldest first; may be changed meanwhile."""
        return iter(tuple(self._lines.get(deployment, ())))

    def deployments(self) -> Iterable[str]:
        """Names of the deployments for which any waits."""
        return tuple(self._lines)
