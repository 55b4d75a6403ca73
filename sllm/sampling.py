"""How tokens are drawn: the parameters of a request, and their bounds."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sllm.errors import InvalidSampling

MAX_SEED: Final = 2**64 - 1
MAX_PENALTY: Final = 2.0
"""Of presence and frequency, either way."""
REPETITION_PENALTIES: Final = (0.01, 100.0)
"""The least and the most: beyond these, logits are no numbers any more."""
MAX_BIAS: Final = 100.0
MAX_BIASES: Final = 1024
MAX_BAD_WORDS: Final = 128
MAX_BAD_WORD: Final = 1000
"""Letters."""
MAX_ALLOWED: Final = 65_536
MAX_MIN_TOKENS: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Sampling:
    """Parameters of one request. The defaults draw from the model's own distribution.

    What rules tokens out or changes their logits does so before temperature and what follows, in
    this order: `allowed_token_ids`, `bad_words`, `min_tokens`, `logit_bias`, penalties. Logprobs
    are of the model's own distribution.
    """

    temperature: float = 1.0
    """Divides the logits. 0 is greedy: the likeliest token, whatever the four that follow say."""
    top_p: float = 1.0
    """Keep the smallest set of likeliest tokens that has this probability. 1 keeps all."""
    top_k: int = 0
    """Keep this many of the likeliest tokens. 0 keeps all."""
    min_p: float = 0.0
    """Keep tokens at least this fraction as likely as the likeliest. 0 keeps all."""
    seed: int | None = None
    """The draw at position i is a pure function of (seed, i, logits). None: any seed."""
    repetition_penalty: float = 1.0
    """Divides the logits of tokens of prompt and generation, or multiplies those below 0 (Keskar et
    al., "CTRL", 2019). 1 changes nothing, more makes repetitions rarer."""
    presence_penalty: float = 0.0
    """Taken from the logits of tokens that were generated."""
    frequency_penalty: float = 0.0
    """Taken from the logits of tokens for each time that they were generated."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """What is added to the logits of tokens, each named once."""
    min_tokens: int = 0
    """Nothing ends the generation before it has so many tokens."""
    bad_words: tuple[str, ...] = ()
    """Texts that are not generated, as their tokens are."""
    allowed_token_ids: tuple[int, ...] = ()
    """Tokens that may be generated. None at all: every one."""

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "Sampling":
        """Of what is set in the protocol's SamplingParams, by the names of its fields."""
        return cls(**{name: _plain(value) for name, value in fields.items()})

    @property
    def greedy(self) -> bool:
        """Whether nothing is left to chance."""
        return self.temperature == 0

    def validate(self, max_tokens: int | None = None) -> None:
        """Checks the bounds.

        Args:
            max_tokens: that the generation may have. None: not told.

        Raises:
            InvalidSampling: A parameter is out of its bounds; the message names it.
        """
        _check("temperature", self.temperature, 0 <= self.temperature < math.inf, "finite, >= 0")
        _check("top_p", self.top_p, 0 < self.top_p <= 1, "in (0, 1]")
        _check("top_k", self.top_k, self.top_k >= 0, ">= 0")
        _check("min_p", self.min_p, 0 <= self.min_p <= 1, "in [0, 1]")
        if self.seed is not None:
            _check("seed", self.seed, 0 <= self.seed <= MAX_SEED, f"in [0, {MAX_SEED}]")
        self._check_penalties()
        self._check_tokens()
        most = MAX_MIN_TOKENS if max_tokens is None else max_tokens
        what = f"from 0 to {'max_tokens, ' if max_tokens is not None else ''}{most}"
        _check("min_tokens", self.min_tokens, 0 <= self.min_tokens <= most, what)

    def _check_penalties(self) -> None:
        repetition = self.repetition_penalty
        least, most = REPETITION_PENALTIES
        bounds = f"in [{least:g}, {most:g}]"
        _check("repetition_penalty", repetition, least <= repetition <= most, bounds)
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            bounds = f"in [-{MAX_PENALTY:g}, {MAX_PENALTY:g}]"
            _check(name, value, -MAX_PENALTY <= value <= MAX_PENALTY, bounds)

    def _check_tokens(self) -> None:
        biases, words, allowed = self.logit_bias, self.bad_words, self.allowed_token_ids
        _check_count("logit_bias", len(biases), MAX_BIASES)
        _check_count("bad_words", len(words), MAX_BAD_WORDS)
        _check_count("allowed_token_ids", len(allowed), MAX_ALLOWED)
        for token, bias in biases:
            what = f"in [-{MAX_BIAS:g}, {MAX_BIAS:g}] for each token"
            _check("logit_bias", bias, -MAX_BIAS <= bias <= MAX_BIAS, what)
            _check("logit_bias", token, token >= 0, "of token ids")
        least = min(allowed, default=0)
        _check("allowed_token_ids", least, least >= 0, "token ids")
        if not all(word.strip() and len(word) <= MAX_BAD_WORD for word in words):
            raise InvalidSampling(
                f"bad_words must be texts of at most {MAX_BAD_WORD} letters, none of them blank"
            )


def _plain(value: Any) -> Any:
    """A number as it is; a map as pairs in order, and a list, as tuples."""
    if isinstance(value, int | float):
        return value
    return tuple(sorted(value.items())) if isinstance(value, Mapping) else tuple(value)


def _check_count(name: str, count: int, most: int) -> None:
    if count > most:
        raise InvalidSampling(f"{name} has {count} entries, and may have {most}")


def _check(name: str, value: float, valid: bool, bounds: str) -> None:
    # Every comparison with a NaN is false, so NaN is never valid.
    if not valid:
        raise InvalidSampling(f"{name} must be {bounds}, not {value}")
