"""A mixture of experts of a published shape, with random weights whose use is skewed.

What a router chooses follows from three parts of a hidden state: one that all tokens have in
common, by which some experts are used more than others whatever the text; one that tokens of a kind
of text have, by which a request uses some more than other requests do; and one of each token.
Tokens are followed by tokens of their kind.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch.nn.functional import normalize
from transformers import OlmoeConfig, OlmoeForCausalLM

from sllm import checkpoint

KINDS: Final = 8
VOCABULARY: Final = 4096
SHAPE: Final = {
    "hidden_size": 2048,
    "intermediate_size": 1024,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "max_position_embeddings": 4096,
}
"""Of OLMoE-1B-7B, whose vocabulary is larger."""


@dataclass(frozen=True, slots=True)
class Skew:
    """How unlike the use of experts is."""

    common: float
    """Of a router's logits, against a spread of 1 by tokens: times the logarithm of an expert's
    rank, whatever the text."""
    kinds: float
    """Spread by kinds of text."""


def make_mixture(directory: Path, layers: int, skew: Skew, dtype: torch.dtype) -> None:
    """Writes a packed checkpoint, a layer's experts at a time."""
    config = OlmoeConfig(
        vocab_size=VOCABULARY,
        num_hidden_layers=layers,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **SHAPE,
    )
    config.architectures = ["OlmoeForCausalLM"]
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        model = OlmoeForCausalLM(config)
    finally:
        torch.set_default_dtype(default)
    _skew(model, skew)
    checkpoint.save(dict(model.state_dict()), directory)
    config.save_pretrained(directory)


@torch.no_grad()
def _skew(model: Any, skew: Skew) -> None:
    hidden = model.config.hidden_size
    frame = torch.linalg.qr(torch.randn(hidden, KINDS + 1))[0].T  # directions at right angles
    common, kinds = frame[0], frame[1:]
    kind_of = torch.arange(VOCABULARY) % KINDS
    own = normalize(_beside(torch.randn(VOCABULARY, hidden), frame), dim=-1)
    root = hidden**0.5
    model.model.embed_tokens.weight.copy_(root * (common + kinds[kind_of] + own))
    model.lm_head.weight.copy_(kinds[kind_of] + 0.1 * own)
    for layer in model.model.layers:
        router = layer.mlp.gate.weight
        popular = -torch.log(torch.arange(1, len(router) + 1).float())[torch.randperm(len(router))]
        liked = torch.randn(len(router), KINDS)
        by_token = _beside(torch.randn(len(router), hidden), frame)
        wanted = skew.common * popular[:, None] * common + skew.kinds * liked @ kinds + by_token
        # Hidden states are of length `root` where they get here, in three parts of equal length.
        router.copy_(wanted * 3**0.5 / root)


def _beside(vectors: torch.Tensor, frame: torch.Tensor) -> torch.Tensor:
    """What vectors are without a frame's directions."""
    return vectors - vectors @ frame.T @ frame
