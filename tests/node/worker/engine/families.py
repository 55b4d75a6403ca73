"""Small models of the families that vLLM is held against, with settings that make each what it is.

Heads are as wide as vLLM's kernels for processors want them, and windows, caps and experts so small
that each of them shows in the tokens.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

from sllm.node.worker.trial.comparison import randomise

VOCABULARY = 320
CONTEXT = 1024
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
_WINDOW = {"sliding_window": 32}
_EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 128,
    "shared_expert_intermediate_size": 128,
}


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture, as a small model of it is made."""

    name: str
    model_type: str
    settings: dict[str, Any] = field(default_factory=dict)


FAMILIES = (
    Family("Llama", "llama"),
    Family("Mistral", "mistral", _WINDOW),
    Family("Qwen 2", "qwen2"),
    Family("Qwen 3", "qwen3"),
    Family("Gemma 2", "gemma2", {**_WINDOW, "attn_logit_softcapping": 2.0}),
    Family("Phi 3", "phi3"),
    Family("GPT-2", "gpt2", {"n_embd": 128, "n_layer": 3, "n_head": 4, "n_positions": CONTEXT}),
    Family("OPT", "opt", {"ffn_dim": 256, "word_embed_proj_dim": 128}),
    Family("Mixtral", "mixtral", _EXPERTS),
    Family("Qwen 2 MoE", "qwen2_moe", _EXPERTS),
)


def make_family(family: Family, directory: Path) -> Any:
    """Writes a model of random weights in float32, and gives it as transformers has it."""
    settings = {**_SIZES, **family.settings}
    config = AutoConfig.for_model(family.model_type, **settings)
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    torch.manual_seed(0)
    model = model_class(config).eval()
    randomise(model, seed=7)
    with torch.no_grad():  # else the likeliest token after any is itself, where embeddings are tied
        model.get_input_embeddings().weight.mul_(0.1)
    model.save_pretrained(directory)
    return model
