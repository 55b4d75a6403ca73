"""One vector for a text, of those of its tokens."""

import torch

from sllm.embedding.purpose import Pooling


def pool(hidden: torch.Tensor, lengths: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """Vectors of texts side by side, in float32.

    Args:
        hidden: [texts, tokens, dimensions], padded on the right.
        lengths: [texts], tokens of each, at least one.
        pooling: how.

    Returns:
        [texts, dimensions].
    """
    match pooling:
        case Pooling.CLS:
            return hidden[:, 0].float()
        case Pooling.LAST:
            return hidden[torch.arange(len(lengths), device=hidden.device), lengths - 1].float()
    there = mask_of(lengths, hidden.shape[1]).unsqueeze(-1)
    numbers = hidden.float()
    if pooling is Pooling.MAX:
        return numbers.masked_fill(~there, -torch.inf).amax(1)
    return numbers.masked_fill(~there, 0.0).sum(1) / lengths.unsqueeze(-1)


def mask_of(lengths: torch.Tensor, tokens: int) -> torch.Tensor:
    """Where there is a token, and no padding: bool [texts, tokens]."""
    return torch.arange(tokens, device=lengths.device).unsqueeze(0) < lengths.unsqueeze(-1)
