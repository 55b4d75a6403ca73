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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import xxhash

from sllm.node.worker.engine.interface import TokenLogprob, TopLogprob
from sllm.sampling import Sampling

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX = (
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
)
"""Steps of SplitMix64 (Steele, Lea and Flood, 2014), which makes any number of random bits from
(key, index) without an order: shifts and factors."""
_LAST_SHIFT = np.uint64(31)
_NUMBERS_AT_ONCE = 1 << 15
"""Rows are taken a few at a time, so that what is computed for each number stays in the cache."""
_HALF = np.int32(2**31 - 1)
_PER_UNIT = np.float32((1 - 2.0**-24) / 2**31)
"""Makes a number below 1 of 31 bits and a half, also where float32 has rounded up to 2^31."""
_MARGIN = np.float32(1 - 1e-5)
"""More than the rounding of float32 comes to."""
_NUCLEUS_HEAD = 1024
"""Tokens that are sorted at first for top_p; hardly any nucleus is larger."""
_FLOAT = torch.finfo(torch.float32)
Array = npt.NDArray[Any]


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


def uniforms(keys: Sequence[int], count: int) -> Array:
    """Numbers above 0 and below 1, float32 [keys, count], that depend on key and index alone.

    Each 64 bits of SplitMix64 make two of them, of the lower half and of the upper. Small ones are
    as exact as 31 bits are. They are the same on every machine.

    Args:
        keys: 64-bit numbers, one for each row.
        count: numbers for each key.
    """
    index = np.arange(-(-count // 2), dtype=np.uint64) * _GAMMA
    bits = np.array(keys, np.uint64)[:, None] + index
    for block in _blocks(bits):
        _mix(block)
    halves = bits.view(np.int32)[:, :count]
    halves &= _HALF
    numbers = halves.astype(np.float32)
    numbers += np.float32(0.5)
    numbers *= _PER_UNIT
    return numbers


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
    first = _first_to_come(weights.cpu().numpy(), uniforms(keys, logits.shape[-1]))
    return torch.from_numpy(first).to(logits.device)


def _first_to_come(weights: Array, uniform: Array) -> Array:
    """The token of each row with the least exponential variate divided by its weight.

    The variate -log(1 - u) lies between u and u / (1 - u). So hardly any token can be the first,
    and logarithms are computed for these alone.
    """
    most = weights / uniform
    floor = (most - weights).max(-1, keepdims=True) * _MARGIN
    able = np.flatnonzero(most >= floor)  # nonzero is ten times slower
    row, token = np.divmod(able, weights.shape[-1])
    speed = weights.flat[able] / -np.log1p(-uniform.flat[able])
    # The fastest of a row is written last, and stays; of those as fast, the one of the least id.
    first = np.empty(len(weights), np.int64)
    order = np.lexsort((-token, speed))
    first[row[order]] = token[order]
    return first


def _blocks(bits: Array) -> Iterator[Array]:
    """Views of a matrix that cover it, each small enough."""
    rows, columns = bits.shape
    width = min(columns, _NUMBERS_AT_ONCE)
    height = _NUMBERS_AT_ONCE // width
    for top in range(0, rows, height):
        for left in range(0, columns, width):
            yield bits[top : top + height, left : left + width]


def _mix(bits: Array) -> None:
    """SplitMix64's steps from its states to its outputs, in place."""
    shifted = np.empty_like(bits)
    for shift, factor in _MIX:
        bits ^= np.right_shift(bits, shift, out=shifted)
        bits *= factor
    bits ^= np.right_shift(bits, _LAST_SHIFT, out=shifted)


def _key(seed: int, position: int) -> int:
    return xxhash.xxh3_64_intdigest(struct.pack("<QQ", seed, position))


def _weights(logits: torch.Tensor, samplings: Sequence[Sampling]) -> torch.Tensor:
    """Probabilities up to a factor: 1 for the likeliest token, 0 for those filtered out."""
    scaled = logits - logits.amax(-1, keepdim=True)
    if any(sampling.temperature != 1 for sampling in samplings):
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
