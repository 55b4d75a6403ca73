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
    """Seconds, by kind, and what is between them: see `BETWEEN`."""

    @property
    def ratio(self) -> float:
        """The estimate's error over what is allowed; at most 1 is right."""
        return abs(self.actual - self.estimate) / max(ALLOWED_SHARE * self.actual, ALLOWED_SECONDS)


BETWEEN = ("asking", "handing over", "telling")
"""What is between the phases: from the node's being called to the fork; from the worker's being
prepared and the weights' being there to their mapping; from the engine's start to the control
plane's knowing of it."""


def _parts(receipt: sllm.Receipt, actual: float) -> dict[str, float]:
    """A start's phases, and what is between them, in seconds."""
    phases = {str(phase.kind): phase for phase in receipt.phases}
    parts = {kind: phase.duration for kind, phase in phases.items()}
    if not {"PLACED", "WORKER_START", "ATTACH", "ENGINE_INIT"} <= phases.keys():
        return parts
    ends = {kind: phase.start + phase.duration for kind, phase in phases.items()}
    before = max(ends.get(kind, 0.0) for kind in ("PREPARE", "READ_SSD", "IMPORT"))
    ready_at = phases["PLACED"].start + actual
    moments = (
        (ends["PLACED"], phases["WORKER_START"].start),
        (before, phases["ATTACH"].start),
        (ends["ENGINE_INIT"], ready_at),
    )
    gaps = {name: end - begin for name, (begin, end) in zip(BETWEEN, moments, strict=True)}
    return parts | gaps


def starts_of(asked: Iterable[Asked]) -> list[StartSeen]:
    """Every start that any of these waited for, once."""
    found: dict[str, StartSeen] = {}
    for one in asked:
        receipt = one.receipt
        if receipt and receipt.cold and receipt.estimated_start is not None:
            assert receipt.actual_start is not None
            seen = StartSeen(
                str(receipt.from_tier),
                receipt.estimated_start,
                receipt.actual_start,
                _parts(receipt, receipt.actual_start),
            )
            found.setdefault(receipt.instance_id, seen)  # who came first saw all of it
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
