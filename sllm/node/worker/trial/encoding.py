"""Whether texts of different lengths side by side give what each gives alone, on a small model."""

from collections.abc import Sequence
from typing import Any, Final

import torch

from sllm.embedding.purpose import Pooling, Purpose
from sllm.errors import UnsupportedModel
from sllm.node.worker.engine.encoder import Batches, Encodable, pooling_of

_LENGTHS: Final = (1, 5, 32, 37, 150)
"""Of the texts, beside one that is as long as may be: past windows, and past whole blocks."""
_TOLERANCE: Final = 1e-3
"""Of the greatest number of a vector: ten times float32's noise and more."""
_FIRST_TOKEN: Final = 3
"""Tokens below it are special ones, of which a model may take note."""


def compare_encodings(model: Any, purpose: Purpose, vocabulary: int, context: int) -> None:
    """Has texts of many lengths encoded side by side, and each alone by the model itself.

    Args:
        model: a small one, in float32 on the CPU.
        purpose: what it is for.
        vocabulary: tokens that it knows.
        context: tokens that it takes.

    Raises:
        UnsupportedModel: Side by side something else comes of a text than alone.
        Exception: Whatever the library raises.
    """
    texts = _texts(vocabulary, context)
    pooling = pooling_of(purpose)
    together = _together(Batches(model, pooling), [Encodable(text) for text in texts])
    for text, found in zip(texts, together, strict=True):
        expected = _alone(model, text, pooling)
        off = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-6))
        if not off <= _TOLERANCE:
            raise UnsupportedModel(
                f"what it makes of a text of {len(text)} tokens among others differs from what it "
                f"makes of that alone (by {off:.2g} of its greatest number)"
            )


def _texts(vocabulary: int, context: int) -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(1)
    lengths = sorted({min(length, context) for length in (*_LENGTHS, context)})
    first = min(_FIRST_TOKEN, vocabulary - 1)
    return [
        tuple(torch.randint(first, vocabulary, (length,), generator=generator).tolist())
        for length in lengths
    ]


def _together(batches: Batches, texts: Sequence[Encodable]) -> torch.Tensor:
    most = batches.most_texts
    groups = [texts[first : first + most] for first in range(0, len(texts), most)]
    return torch.cat([batches.compute(group) for group in groups])


@torch.inference_mode()
def _alone(model: Any, text: tuple[int, ...], pooling: Pooling | None) -> torch.Tensor:
    ids = torch.tensor([text])
    output = model(input_ids=ids, attention_mask=torch.ones_like(ids))
    if pooling is None:
        scores: torch.Tensor = output.logits[0]
        return scores
    hidden: torch.Tensor = output.last_hidden_state[0]
    match pooling:
        case Pooling.CLS:
            return hidden[0]
        case Pooling.LAST:
            return hidden[-1]
        case Pooling.MEAN:
            return hidden.mean(0)
        case Pooling.MAX:
            return hidden.amax(0)
