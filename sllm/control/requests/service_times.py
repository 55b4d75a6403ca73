"""What serving has taught: how long requests take, and how long it takes to end an instance."""

import math
from dataclasses import dataclass

_WEIGHT = 0.2
"""Weight of the newest request in the running means."""


@dataclass(frozen=True, slots=True)
class Served:
    """A request that has had all of its answer."""

    first_token_seconds: float
    """From its being given to an instance."""
    seconds: float
    """From the same moment to its end."""
    generated_tokens: int


@dataclass(frozen=True, slots=True)
class Expectation:
    """What a request of a deployment takes, by running means."""

    first_token_seconds: float
    """From its being given to an instance."""
    seconds: float
    """From the same moment to its end."""
    generated_tokens: float

    def slot_wait(self, waiting: int, slots: int) -> float:
        """Seconds until `waiting` requests have had one of `slots` that are all taken."""
        return self.seconds * waiting / slots if slots else math.inf

    def updated(self, served: Served) -> "Expectation":
        """The expectation after one more request."""
        return Expectation(
            _mean(self.first_token_seconds, served.first_token_seconds),
            _mean(self.seconds, served.seconds),
            _mean(self.generated_tokens, served.generated_tokens),
        )


class ServiceTimes:
    """Everything learned from requests. Belongs to the event loop."""

    def __init__(self) -> None:
        self.stop_seconds = 0.0
        """What ending an idle instance takes, by running means; 0 until one was ended."""
        self._expectations: dict[str, Expectation] = {}

    def served(self, deployment: str, served: Served) -> None:
        """Takes in a request that was served."""
        first = Expectation(
            served.first_token_seconds, served.seconds, float(served.generated_tokens)
        )
        known = self._expectations.get(deployment)
        self._expectations[deployment] = known.updated(served) if known else first

    def stopped(self, seconds: float) -> None:
        """Takes in how long it took to end an instance without grace."""
        known = self.stop_seconds
        self.stop_seconds = _mean(known, seconds) if known else seconds

    def expectation(self, deployment: str) -> Expectation | None:
        """What its next request takes. None: it has served none."""
        return self._expectations.get(deployment)

    def forget(self, deployment: str) -> None:
        """Drops what is kept of a deployment that is no more."""
        self._expectations.pop(deployment, None)


def _mean(before: float, newest: float) -> float:
    return before + _WEIGHT * (newest - before)
