"""Tokens are chosen on the first rank of a model, and told to the others."""

import torch
from vllm.distributed.parallel_state import get_tp_group


def share_choice(logits: torch.Tensor) -> torch.Tensor:
    """On the first rank: tells the others which tokens were chosen, the likeliest of each row."""
    _of_first(logits.argmax(-1))
    return logits


def take_choice(logits: torch.Tensor) -> torch.Tensor:
    """On the others: has an argmax find the tokens that the first rank has chosen."""
    tokens = _of_first(torch.empty(len(logits), dtype=torch.int64, device=logits.device))
    return logits.scatter_(-1, tokens.unsqueeze(-1), torch.inf)


def _of_first(tokens: torch.Tensor) -> torch.Tensor:
    """What the first rank has given, on all of them."""
    found: torch.Tensor = get_tp_group().all_gather(tokens.unsqueeze(0), dim=0)
    return found[0]
