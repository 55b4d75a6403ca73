"""The tokens of a step, chosen by its logits for all requests in it, whichever the engine."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from sllm.node.worker.engine.interface import EngineRequest, TokenLogprob
from sllm.node.worker.engine.sampler import Draw, draw_tokens, token_logprobs
from sllm.node.worker.engine.shaping import Shape, shapes


@dataclass(slots=True)
class Chosen:
    """A request, and what is known of the tokens that were chosen for it."""

    request: EngineRequest
    generated: int = 0
    """Tokens, by this engine."""
    logprob: TokenLogprob | None = None
    """Of the token of this step."""
    broken: bool = False
    """Whether this step's logits are no numbers."""
    shape: Shape | None = None
    """What it says of single tokens. None: nothing, or it has not come to a token."""

    @property
    def position(self) -> int:
        """Index in the generation of the token that is drawn next."""
        return self.request.first_position + self.generated

    def take(self, token_id: int) -> None:
        """Notes the token of this step."""
        self.generated += 1
        if self.shape is not None:
            self.shape.take(token_id)


Row = TypeVar("Row", bound=Chosen)
Rows = Sequence[tuple[int, Row]]
"""Requests, each with the index of its row of logits."""


def choose(logits: torch.Tensor, rows: Rows[Row]) -> torch.Tensor:
    """Has an argmax find the tokens that are chosen; notes logprobs, and which rows are broken.

    Args:
        logits: float32 [rows, vocabulary], as the model gave them; changed in place.
        rows: of requests that want a token. Others' are nobody's.
    """
    # The largest is no number if any is none; tokens that are ruled out are at minus infinity.
    sound = logits.amax(-1).isfinite().tolist()
    for row, one in rows:
        one.broken = not sound[row]
    rows = [(row, one) for row, one in rows if sound[row]]
    drawing = [(row, one) for row, one in rows if not one.request.sampling.greedy]
    asking = [(row, one) for row, one in rows if one.request.logprobs is not None]
    shaping = [(row, one) for row, one in rows if shapes(one.request, one.position)]
    if not drawing and not asking and not shaping:
        return logits
    given = logits[[row for row, _ in asking]] if asking else logits  # a copy of these rows
    if lost := _shape(logits, shaping):
        drawing = [(row, one) for row, one in drawing if row not in lost]
    tokens = _chosen(logits, drawing)
    if asking:
        _note_logprobs(given, tokens, asking)
    return logits.scatter_(-1, tokens.unsqueeze(-1), torch.inf)


def _shape(logits: torch.Tensor, shaping: Rows[Row]) -> set[int]:
    """Changes rows as their requests say; those in which no token is left are broken, and given."""
    for row, one in shaping:
        if one.shape is None:
            one.shape = Shape(one.request, logits.shape[-1], logits.device)
        one.shape.apply(logits[row])
    sound = logits.amax(-1).isfinite().tolist() if shaping else ()
    for row, one in shaping:
        one.broken = not sound[row]
    return {row for row, one in shaping if one.broken}


def _chosen(logits: torch.Tensor, drawing: Rows[Row]) -> torch.Tensor:
    """The token of each row: drawn where one is, else the likeliest."""
    index = [row for row, _ in drawing]
    draws = [Draw(one.request.sampling, one.position) for _, one in drawing]
    if index == list(range(len(logits))):
        return draw_tokens(logits, draws)
    tokens = logits.argmax(-1)
    if index:
        tokens[index] = draw_tokens(logits[index], draws)
    return tokens


def _note_logprobs(given: torch.Tensor, tokens: torch.Tensor, asking: Rows[Row]) -> None:
    """Of the rows that ask, as the model gave them."""
    index = [row for row, _ in asking]
    counts = [one.request.logprobs or 0 for _, one in asking]
    logprobs = token_logprobs(given, tokens[index], counts)
    for (_, one), logprob in zip(asking, logprobs, strict=True):
        one.logprob = logprob
