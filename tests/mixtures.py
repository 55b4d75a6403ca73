"""Mixtures of experts for tests: small, but larger than what they are given."""

from pathlib import Path
from typing import Final

import torch
from text import special_ids, train_tokenizer
from transformers import GenerationConfig, Qwen3MoeConfig, Qwen3MoeForCausalLM

from sllm.node.worker.trial.comparison import randomise

TOKENS: Final = 320
LAYERS: Final = 6
EXPERTS: Final = 16
LAYER_BYTES: Final = EXPERTS * 3 * 128 * 256 * 4
"""Of the experts of one layer."""


def make_mixture(directory: Path, layers: int = LAYERS) -> Path:
    """Writes a model of some 40 MB in float32, with a tokenizer."""
    tokenizer = train_tokenizer(TOKENS)
    ids = special_ids(tokenizer)
    for part in (tokenizer, GenerationConfig(**ids)):
        part.save_pretrained(directory)
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=TOKENS,
        hidden_size=128,
        intermediate_size=256,
        moe_intermediate_size=256,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        num_experts=EXPERTS,
        num_experts_per_tok=2,
        max_position_embeddings=1024,
        **ids,
    )
    model = Qwen3MoeForCausalLM(config).eval()
    randomise(model, seed=7)
    model.save_pretrained(directory)
    return directory
