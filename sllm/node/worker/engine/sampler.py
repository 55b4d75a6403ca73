"""Drawing tokens from logits.

A draw keeps no state: it is a pure function of (seed, position, logits). A request can therefore
go on anywhere with the same outcome, given the same seed and the tokens so far.

Of exponential variates divided by weights, the least is at token i with the probability of i: the
"Gumbel-max trick" (Maddison et al., "A* Sampling", 2014) in another form. It asks for a number per
token, where inverting the cumulative distribution asks for one, but hardly notices the rounding
of logits, which differs with the batch and the machine: only two tokens that almost tie can change
places. Along a cumulative distribution there is a border to fall over at every token.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import xxhash

from sllm.node.worker.engine.interface import TokenLogprob, TopLogprob
from sllm.sampling import Sampling

_GAMMA = 0x9E3779B97F4A7C15
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
"""Steps of SplitMix64 (Steele, Lea and Flood, 2014), which makes any number of random bits from
(key, index) without an order: shifts and factors."""
_NUMBERS_AT_ONCE = 1 << 20
"""Rows are taken a few at a time, so that what is computed for each number stays in the cache."""
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


def draw_tokens(logits: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
    """Draws one token for every row.

    Args:
        logits: float32 [rows, vocabulary], not changed.
        draws: one for each row, none of them greedy.

    Returns:
        Token ids, int64 [rows].
    """
    at_once = max(1, _NUMBERS_AT_ONCE // logits.shape[-1])
    starts = range(0, len(draws), at_once)
    return torch.cat([_draw(logits[i : i + at_once], draws[i : i + at_once]) for i in starts])


def exponentials(keys: Sequence[int], count: int, device: torch.device) -> torch.Tensor:
    """Exponential variates, float32 [keys, count], that depend on key and index alone.

    Args:
        keys: 64-bit numbers, one for each row.
        count: variates for each key.
        device: where to compute them; they are the same everywhere but for rounding.
    """
    index = torch.arange(count, device=device)
    rows = torch.tensor([_signed(key) for key in keys], device=device).unsqueeze(-1)
    bits = rows + index * _signed(_GAMMA)
    for shift, factor in _MIX:
        bits ^= _shifted(bits, shift)
        bits *= _signed(factor)
    bits ^= _shifted(bits, 31)
    uniform = _shifted(bits, 11).to(torch.float32).mul_(2.0**-53)
    # Small variates decide, and those are exact: log1p(-u) keeps what is left of a small u.
    return uniform.neg_().log1p_().neg_().clamp_(min=_FLOAT.tiny)


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


def _draw(logits: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
    weights = _weights(logits, [draw.sampling for draw in draws])
    keys = [_key(draw.sampling.seed or 0, draw.position) for draw in draws]
    return weights.div_(exponentials(keys, logits.shape[-1], logits.device)).argmax(-1)


def _key(seed: int, position: int) -> int:
    return xxhash.xxh3_64_intdigest(struct.pack("<QQ", seed, position))


def _signed(bits: int) -> int:
    """The int64 that has these 64 bits."""
    return bits - 2**64 if bits >= 2**63 else bits


def _shifted(bits: torch.Tensor, count: int) -> torch.Tensor:
    """Shifts right, filling up with zeros where int64 would copy its sign."""
    return (bits >> count).bitwise_and_(2 ** (64 - count) - 1)


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
