"""Logprobs of the tokens of a prompt, put together from the steps that it is computed in."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from sllm.node.worker.engine.interface import PromptLogprobs

_ROWS_AT_ONCE: Final = 32
"""Of logits whose probabilities are computed, at most."""
_LOGITS_BYTES: Final = 16 << 20
"""Of logits in float32 at once: of prompts in a step, and where probabilities are computed."""


def rows_at_once(vocabulary: int) -> int:
    """How many rows of logits there may be at once of prompts whose logprobs are wanted."""
    return max(1, _LOGITS_BYTES // (torch.float32.itemsize * vocabulary))


def in_pieces(rows: torch.Tensor, vocabulary: int) -> Iterator[tuple[int, torch.Tensor]]:
    """A few rows after the other, each time with the index of the first."""
    count = min(_ROWS_AT_ONCE, rows_at_once(vocabulary))
    for start in range(0, len(rows), count):
        yield start, rows[start : start + count]


@dataclass(frozen=True, slots=True)
class PromptRows:
    """Where in a step's logits a part of a prompt is."""

    scores: "PromptScores"
    first_row: int
    first_index: int
    """In the prompt."""
    count: int

    @property
    def rows(self) -> range:
        """Their indices in the step."""
        return range(self.first_row, self.first_row + self.count)


class PromptScores:
    """Those of one prompt. A part that is computed again takes the place of what was there."""

    def __init__(self, prompt: Sequence[int], alternatives: int) -> None:
        self._next = torch.tensor(prompt[1:], dtype=torch.long)
        self._alternatives = alternatives
        self._logprobs = torch.full((len(prompt) - 1,), torch.nan)
        self._top: tuple[torch.Tensor, torch.Tensor] | None = None

    def part(self, first_row: int, first_index: int, count: int) -> PromptRows | None:
        """Where those of its tokens are that are followed by another. None: none are."""
        count = min(count, len(self._next) - first_index)
        return PromptRows(self, first_row, first_index, count) if count > 0 else None

    def put(self, first_index: int, logits: torch.Tensor) -> None:
        """Takes the logits, [tokens, vocabulary], of tokens of the prompt from `first_index` on."""
        for start, some in in_pieces(logits, logits.shape[-1]):
            self._put(first_index + start, some)

    def whole(self) -> PromptLogprobs:
        """All of them, once the prompt has been computed."""
        ids, values = self._top or self._empty(0)
        return PromptLogprobs(self._logprobs, ids, values)

    def _put(self, first: int, logits: torch.Tensor) -> None:
        logprobs = logits.float().log_softmax(-1)
        if self._top is None:
            self._top = self._empty(min(self._alternatives, logits.shape[-1]))
        ids, values = self._top
        rows = slice(first, first + len(logits))
        following = self._next[rows].to(logits.device).unsqueeze(-1)
        self._logprobs[rows] = logprobs.gather(-1, following).squeeze(-1).cpu()
        likeliest = logprobs.topk(ids.shape[-1])
        ids[rows], values[rows] = likeliest.indices.cpu(), likeliest.values.cpu()

    def _empty(self, alternatives: int) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (len(self._next), alternatives)
        return torch.zeros(shape, dtype=torch.long), torch.zeros(shape)
