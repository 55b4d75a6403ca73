"""A real trace's results, as figures: first tokens, starts against their estimates, failures."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

import sllm
from bench.live.asking import Asked

ALLOWED_SHARE = 0.2
"""An estimate may be off by this share of the actual start,"""
ALLOWED_SECONDS = 0.1
"""or by so much, whichever is more."""


@dataclass(frozen=True, slots=True)
class StartSeen:
    """One instance's start, from the receipt of a request that waited for it."""

    from_tier: str
    """Highest tier that held the weights when it was decided on."""
    estimate: float
    """Seconds."""
    actual: float
    """Seconds."""
    phases: dict[str, float]
    """Seconds, by kind."""

    @property
    def ratio(self) -> float:
        """The estimate's error over what is allowed; at most 1 is right."""
        return abs(self.actual - self.estimate) / max(ALLOWED_SHARE * self.actual, ALLOWED_SECONDS)


def starts_of(asked: Iterable[Asked]) -> list[StartSeen]:
    """Every start that any of these waited for, once."""
    found: dict[str, StartSeen] = {}
    for one in asked:
        receipt = one.receipt
        if receipt and receipt.cold and receipt.estimated_start is not None:
            assert receipt.actual_start is not None
            found[receipt.instance_id] = StartSeen(
                str(receipt.from_tier),
                receipt.estimated_start,
                receipt.actual_start,
                {str(phase.kind): phase.duration for phase in receipt.phases},
            )
    return list(found.values())


def unknown_estimates(asked: Iterable[Asked]) -> int:
    """Starts of which placement could not say how long they would take."""
    receipts = (one.receipt for one in asked)
    return len({r.instance_id for r in receipts if r and r.cold and r.estimated_start is None})


def way(receipt: sllm.Receipt) -> str:
    """How its request found its model."""
    return f"cold from {receipt.from_tier}" if receipt.cold else "warm"


def first_tokens(asked: Iterable[Asked]) -> dict[str, list[float]]:
    """Seconds to the first token, by the way."""
    found: dict[str, list[float]] = {}
    for one in asked:
        seconds = one.time_to_first_token
        if one.receipt and seconds is not None:
            found.setdefault(way(one.receipt), []).append(seconds)
    return dict(sorted(found.items()))


def percentile(values: Sequence[float], percent: float) -> float:
    """Not a number where there are no values."""
    return float(np.percentile(values, percent)) if values else float("nan")
