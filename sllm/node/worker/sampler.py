"""Drawing tokens from logits.

A draw keeps no state: it is a pure function of (seed, position, logits). A request can therefore
go on anywhere with the same outcome, given the same seed and the tokens so far.

The draw inverts the cumulative distribution in the order of the vocabulary. In order of
probability, two tokens that are almost equally likely could change places for a difference in
the last bit of a logit, and with them everything in between.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import xxhash

from sllm.node.worker.engine import TokenLogprob, TopLogprob
from sllm.sampling import Sampling

_NUCLEUS_HEAD = 1024
"""Tokens that are sorted at first for top_p; hardly any nucleus is larger."""
_FLOAT = torch.finfo(torch.float32)


@dataclass(frozen=True, slots=True)
class Draw:
    """What a token is drawn by."""

    sampling: Sampling
    """With its seed set."""
    position: int
    """Index in the generation of the token that is drawn."""


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on nothing but its arguments."""
    mixed = xxhash.xxh3_64_intdigest(struct.pack("<QQ", seed, position))
    return float(mixed >> 11) * 2.0**-53  # as many bits as a float's significand has


def draw_tokens(logits: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
    """Draws one token for every row.

    Args:
        logits: float32 [rows, vocabulary], not changed.
        draws: one for each row, none of them greedy.

    Returns:
        Token ids, int64 [rows].
    """
    weights = _weights(logits, [draw.sampling for draw in draws])
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    chances = [uniform(draw.sampling.seed or 0, draw.position) for draw in draws]
    targets = cumulative[:, -1:] * _column(chances, cumulative)
    # The first token whose interval reaches beyond the target; it is never one of weight zero.
    return torch.searchsorted(cumulative, targets, right=True).squeeze(-1)


def token_logprobs(
    logits: torch.Tensor, tokens: torch.Tensor, counts: Sequence[int]
) -> list[TokenLogprob]:
    """Logprobs of the tokens chosen and of the likeliest ones.

    Args:
        logits: float32 [rows, vocabulary], as the model gave them.
        tokens: int64 [rows], the tokens chosen.
        counts: for each row, how many of the likeliest tokens to give.
    """
    logprobs = logits.log_softmax(-1)
    chosen = logprobs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1).tolist()
    values, ids = logprobs.topk(min(max(counts), logits.shape[-1]))
    rows = zip(chosen, values.tolist(), ids.tolist(), counts, strict=True)
    return [
        TokenLogprob(logprob, tuple(map(TopLogprob, ids[:count], values[:count])))
        for logprob, values, ids, count in rows
    ]


def _weights(logits: torch.Tensor, samplings: Sequence[Sampling]) -> torch.Tensor:
    """Probabilities up to a factor: 1 for the likeliest token, 0 for those filtered out."""
    scaled = logits - logits.amax(-1, keepdim=True)
    temperatures = _column([sampling.temperature for sampling in samplings], scaled)
    # A temperature that float32 cannot hold would lead to 0/0 or inf/inf.
    scaled /= temperatures.clamp_(_FLOAT.tiny, _FLOAT.max)
    weights = scaled.exp_()
    for keep in (_keep_top_k, _keep_top_p, _keep_min_p):
        keep(weights, samplings)
    return weights


def _keep_top_k(weights: torch.Tensor, samplings: Sequence[Sampling]) -> None:
    vocabulary = weights.shape[-1]
    rows = [row for row, sampling in enumerate(samplings) if 0 < sampling.top_k < vocabulary]
    if not rows:
        return
    counts = [samplings[row].top_k for row in rows]
    likeliest = weights[rows].topk(max(counts)).values
    last = torch.tensor(counts, device=weights.device).unsqueeze(-1) - 1
    _drop_below(weights, rows, likeliest.gather(-1, last))


def _keep_top_p(weights: torch.Tensor, samplings: Sequence[Sampling]) -> None:
    rows = [row for row, sampling in enumerate(samplings) if sampling.top_p < 1]
    if not rows:
        return
    chosen = weights[rows]
    total = chosen.sum(-1, keepdim=True, dtype=torch.float64)
    mass = total * _column([samplings[row].top_p for row in rows], total)
    _drop_below(weights, rows, _nucleus_floor(chosen, mass))


def _keep_min_p(weights: torch.Tensor, samplings: Sequence[Sampling]) -> None:
    rows = [row for row, sampling in enumerate(samplings) if sampling.min_p > 0]
    if rows:
        _drop_below(weights, rows, _column([samplings[row].min_p for row in rows], weights))


def _nucleus_floor(weights: torch.Tensor, mass: torch.Tensor) -> torch.Tensor:
    """The least weight in the smallest set of likeliest tokens that has `mass`; [rows, 1]."""
    vocabulary = weights.shape[-1]
    head = weights.topk(min(_NUCLEUS_HEAD, vocabulary)).values
    reached = head.cumsum(-1, dtype=torch.float64) >= mass
    if not reached[:, -1].all():
        head = weights.sort(-1, descending=True).values
        reached = head.cumsum(-1, dtype=torch.float64) >= mass
        reached[:, -1] = True  # where rounding left the sum a little short
    first = reached.to(torch.uint8).argmax(-1, keepdim=True)
    return head.gather(-1, first)


def _drop_below(weights: torch.Tensor, rows: Sequence[int], floor: torch.Tensor) -> None:
    """Sets the weights below `floor`, [rows, 1], to zero. Equal weights stay or go together."""
    kept = weights[rows]
    weights[rows] = kept.masked_fill_(kept < floor, 0.0)


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).unsqueeze(-1)
