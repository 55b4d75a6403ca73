"""How tokens are drawn: the parameters of a request, and their bounds."""

import math
from dataclasses import dataclass

from sllm.errors import InvalidSampling

MAX_SEED = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Sampling:
    """Parameters of one request. The defaults draw from the model's own distribution."""

    temperature: float = 1.0
    """Divides the logits. 0 is greedy: the likeliest token, whatever the rest says."""
    top_p: float = 1.0
    """Keep the smallest set of likeliest tokens that has this probability. 1 keeps all."""
    top_k: int = 0
    """Keep this many of the likeliest tokens. 0 keeps all."""
    min_p: float = 0.0
    """Keep tokens at least this fraction as likely as the likeliest. 0 keeps all."""
    seed: int | None = None
    """The draw at position i is a pure function of (seed, i, logits). None: any seed."""

    @property
    def greedy(self) -> bool:
        """Whether nothing is left to chance."""
        return self.temperature == 0

    def validate(self) -> None:
        """Checks the bounds.

        Raises:
            InvalidSampling: A parameter is out of its bounds; the message names it.
        """
        _check("temperature", self.temperature, 0 <= self.temperature < math.inf, "finite, >= 0")
        _check("top_p", self.top_p, 0 < self.top_p <= 1, "in (0, 1]")
        _check("top_k", self.top_k, self.top_k >= 0, ">= 0")
        _check("min_p", self.min_p, 0 <= self.min_p <= 1, "in [0, 1]")
        if self.seed is not None:
            _check("seed", self.seed, 0 <= self.seed <= MAX_SEED, f"in [0, {MAX_SEED}]")


def _check(name: str, value: float, valid: bool, bounds: str) -> None:
    # Every comparison with a NaN is false, so NaN is never valid.
    if not valid:
        raise InvalidSampling(f"{name} must be {bounds}, not {value}")
