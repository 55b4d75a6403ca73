"""What serving has taught: how long requests take, and what migrating one would take."""

from dataclasses import dataclass

from sllm.control.lines import Fit
from sllm.control.running import MigrationCost

_WEIGHT = 0.2
"""Weight of the newest request in the running means."""
_KEPT = 0.98
"""What an older observation of a line counts for when a new one comes."""


@dataclass(frozen=True, slots=True)
class Served:
    """A request that has had all of its answer."""

    first_token_seconds: float
    """From its being given to an instance."""
    seconds: float
    """From the same moment to its end."""
    prompt_tokens: int
    """Those that had to be computed."""
    generated_tokens: int
    prefill_seconds: float | None = None
    """What the engine took for the prompt. None: it was not told."""


@dataclass(frozen=True, slots=True)
class Expectation:
    """What a request of a deployment takes, by running means."""

    first_token_seconds: float
    """From its being given to an instance."""
    seconds: float
    """From the same moment to its end."""
    generated_tokens: float

    def updated(self, served: Served) -> "Expectation":
        """With one request more."""
        return Expectation(
            _mean(self.first_token_seconds, served.first_token_seconds),
            _mean(self.seconds, served.seconds),
            _mean(self.generated_tokens, served.generated_tokens),
        )


class Experience:
    """Everything learned from requests. Belongs to the event loop."""

    def __init__(self) -> None:
        self._expectations: dict[str, Expectation] = {}
        self._prefill = Fit()
        self._migrations = Fit()

    def served(self, deployment: str, served: Served) -> None:
        """Takes in a request that was served."""
        first = Expectation(
            served.first_token_seconds, served.seconds, float(served.generated_tokens)
        )
        known = self._expectations.get(deployment)
        self._expectations[deployment] = known.updated(served) if known else first
        if served.prefill_seconds is not None and served.prompt_tokens:
            self._prefill = self._prefill.observed(
                served.prompt_tokens, served.prefill_seconds, kept=_KEPT
            )

    def migrated(self, tokens: int, seconds: float) -> None:
        """Takes in a migration: the tokens that were computed anew, and how long it took."""
        self._migrations = self._migrations.observed(tokens, seconds, kept=_KEPT)

    def expectation(self, deployment: str) -> Expectation | None:
        """What its next request takes. None: it has served none."""
        return self._expectations.get(deployment)

    def forget(self, deployment: str) -> None:
        """Drops what is kept of a deployment that is no more."""
        self._expectations.pop(deployment, None)

    @property
    def migration(self) -> MigrationCost | None:
        """Of migrations or, before there was any, of prefills: the prompt is computed anew.

        None: neither was observed.
        """
        line = self._migrations.line or self._prefill.line
        return MigrationCost(per_token=line.slope, base=line.base) if line else None


def _mean(before: float, newest: float) -> float:
    return before + _WEIGHT * (newest - before)
