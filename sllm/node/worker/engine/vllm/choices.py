"""Tokens are chosen on the first rank of a model, and told to the others."""

import torch
from vllm.distributed.parallel_state import get_tp_group


def share_choice(logits: torch.Tensor) -> torch.Tensor:
    """On the first rank: tells the others which tokens were chosen, the likeliest of each row."""
    get_tp_group().broadcast(logits.argmax(-1), src=0)
    return logits


def take_choice(logits: torch.Tensor) -> torch.Tensor:
    """On the others: has an argmax find the tokens that the first rank has chosen."""
    tokens = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    get_tp_group().broadcast(tokens, src=0)
    return logits.scatter_(-1, tokens.unsqueeze(-1), torch.inf)
