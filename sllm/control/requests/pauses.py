"""How long deployments are left alone between requests: what learned keep-alive is learned from."""

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Final

EDGES: Final = tuple(0.05 * 1.25**index for index in range(64))
"""Seconds at which the buckets of a histogram end; the last holds what is longer (18 hours)."""
FADE: Final = 1 - 1 / 64
"""What is left of all earlier pauses when another one comes: some hundred of them count."""
LEAST_SEEN: Final = 16.0
"""Pauses, as they count, from which on anything is concluded."""


@dataclass(frozen=True, slots=True)
class Pauses:
    """A histogram of pauses that fades with each new one. Immutable, and of one size."""

    weights: tuple[float, ...] = (0.0,) * (len(EDGES) + 1)
    """Of each bucket; the last has no end."""

    def plus(self, seconds: float) -> "Pauses":
        """One pause more."""
        weights = [FADE * weight for weight in self.weights]
        weights[bisect_left(EDGES, seconds)] += 1.0
        return Pauses(tuple(weights))

    @property
    def seen(self) -> float:
        """How many pauses count, those that have faded as parts of one."""
        return sum(self.weights)

    @property
    def suffice(self) -> bool:
        """Whether anything may be concluded."""
        return self.seen >= LEAST_SEEN

    def survival(self) -> tuple[float, ...]:
        """For 0 and each of `EDGES`, the probability that a pause is longer.

        One pause without an end is counted beside those that were seen, so that it is never 0.
        """
        longer = self.seen + 1.0
        chances = [1.0]
        for weight in self.weights[:-1]:
            chances.append(chances[-1] - weight / longer)
        return tuple(chances)


@dataclass(slots=True)
class Arrivals:
    """The pauses of all deployments. Every `now` is in the clock's seconds.

    A pause begins with the end of the last request, since an instance is idle only from then on.
    """

    _pauses: dict[str, Pauses] = field(default_factory=dict)
    _left_at: dict[str, float] = field(default_factory=dict)
    """When a request of a deployment last ended."""

    def arrived(self, deployment: str, now: float, *, alone: bool) -> None:
        """A request has come; `alone`: no other one of its deployment waits or runs."""
        left_at = self._left_at.pop(deployment, None)
        if alone and left_at is not None:
            self._pauses[deployment] = self.of(deployment).plus(now - left_at)

    def ended(self, deployment: str, now: float) -> None:
        """A request has ended."""
        self._left_at[deployment] = now

    def left_at(self, deployment: str) -> float:
        """When a request of a deployment last ended, unless another one has come. 0: never."""
        return self._left_at.get(deployment, 0.0)

    def of(self, deployment: str) -> Pauses:
        """What is known of a deployment's pauses."""
        return self._pauses.get(deployment, _NONE)

    def forget(self, deployment: str) -> None:
        """Drops what is kept of a deployment that is no more."""
        self._pauses.pop(deployment, None)
        self._left_at.pop(deployment, None)


_NONE: Final = Pauses()
