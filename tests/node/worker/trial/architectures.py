"""Architectures that transformers has, with the settings that make each what it is.

Each becomes a small model with random weights. What is not said here is as the class has it.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from text import special_ids, train_tokenizer
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, GenerationConfig

from sllm.node.worker.trial.comparison import randomise
from sllm.node.worker.trial.shrinking import tiny

TOKENS = 320

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1000000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32768,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + 0.05 * n for n in range(48)],
    "long_factor": [1.0 + 0.7 * n for n in range(48)],
    "original_max_position_embeddings": 4096,
}
LLAMA31 = {
    "rope_parameters": LLAMA3,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
}
DYNAMIC = {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}}
STRETCHED = {"rope_parameters": YARN, "max_position_embeddings": 131072}
WINDOWS = {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 16}
PHI3 = {"pad_token_id": 0}
PHI3_LONG = {
    **PHI3,
    "max_position_embeddings": 131072,
    "original_max_position_embeddings": 4096,
    "rope_parameters": LONGROPE,
}
GRANITE = {"embedding_multiplier": 12.0, "attention_multiplier": 0.0625, "logits_scaling": 8.0}
HALF_CONVOLUTIONS = {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]}
DOTS1 = {"n_routed_experts": 8, "n_shared_experts": 2, "num_experts_per_tok": 2}
_PAGED = "does not take a paged attention cache"
_LAYERS = "has layers of type"
_DIFFERS = "differs from that of transformers' own generate"
_FAILS = "does not run on a paged cache"


@dataclass(frozen=True, slots=True)
class Case:
    """An architecture and what is to come of it."""

    name: str
    model_type: str
    refused: str = ""
    """What the refusal says. Empty: it is served."""
    settings: dict[str, Any] = field(default_factory=dict)


CASES = (
    Case("Llama 2", "llama"),
    Case("Llama 3.1", "llama", settings=LLAMA31),
    Case("Llama, dynamic NTK", "llama", settings=DYNAMIC),
    Case("Mistral", "mistral"),
    Case("Mistral without a window", "mistral", settings={"sliding_window": None}),
    Case("Ministral 3", "ministral3"),
    Case("Mixtral", "mixtral"),
    Case("Qwen 2", "qwen2"),
    Case("Qwen 2.5, YaRN", "qwen2", settings=STRETCHED),
    Case("Qwen 2, half of it in windows", "qwen2", settings=WINDOWS),
    Case("Qwen 2 MoE", "qwen2_moe"),
    Case("Qwen 3", "qwen3"),
    Case("Qwen 3 MoE", "qwen3_moe"),
    Case("Gemma", "gemma"),
    Case("Gemma 2", "gemma2"),
    Case("Gemma 3, text", "gemma3_text"),
    Case("VaultGemma", "vaultgemma"),
    Case("Phi 2", "phi"),
    Case("Phi 3", "phi3", settings=PHI3),
    Case("Phi 3, 128k", "phi3", settings=PHI3_LONG),
    Case("Phi 3.5 MoE", "phimoe"),
    Case("GPT-2", "gpt2"),
    Case("GPT-NeoX", "gpt_neox"),
    Case("StarCoder", "gpt_bigcode"),
    Case("StarCoder 2", "starcoder2"),
    Case("gpt-oss", "gpt_oss"),
    Case("OPT", "opt"),
    Case("Cohere", "cohere"),
    Case("Cohere 2", "cohere2"),
    Case("OLMo", "olmo"),
    Case("OLMo 2", "olmo2"),
    Case("OLMo 3", "olmo3"),
    Case("OLMoE", "olmoe"),
    Case("FlexOlmo", "flex_olmo"),
    Case("Granite", "granite", settings=GRANITE),
    Case("Granite MoE", "granitemoe"),
    Case("Granite MoE, shared", "granitemoeshared"),
    Case("GLM", "glm"),
    Case("GLM 4", "glm4"),
    Case("GLM 4 MoE", "glm4_moe"),
    Case("EXAONE 4", "exaone4"),
    Case("ERNIE 4.5", "ernie4_5"),
    Case("ERNIE 4.5 MoE", "ernie4_5_moe"),
    Case("SmolLM 3", "smollm3"),
    Case("Seed-OSS", "seed_oss"),
    Case("Arcee", "arcee"),
    Case("Apertus", "apertus"),
    Case("BitNet", "bitnet"),
    Case("Helium", "helium"),
    Case("NanoChat", "nanochat"),
    Case("Persimmon", "persimmon"),
    Case("MiniMax M2", "minimax_m2"),
    Case("HunYuan", "hunyuan_v1_dense", settings={"head_dim": 128}),
    Case("HunYuan MoE", "hunyuan_v1_moe", settings={"head_dim": 128}),
    Case("dots.llm1", "dots1", settings=DOTS1),
    Case("Nemotron", "nemotron", _FAILS, {"num_key_value_heads": 8, "head_dim": 128}),
    Case("CTRL", "ctrl"),
    Case("DiffLlama", "diffllama", _DIFFERS),
    Case("Doge", "doge", f"{_DIFFERS}|{_FAILS}"),
    Case("DeepSeek V2", "deepseek_v2", f"{_FAILS}|could not", {"num_experts_per_tok": 6}),
    Case("DeepSeek V3", "deepseek_v3", f"{_FAILS}|could not"),
    Case("MiniCPM 3", "minicpm3", f"{_FAILS}|could not"),
    Case("JetMoe", "jetmoe", _FAILS),
    Case("MiMo V2", "mimo_v2_flash", _FAILS),
    Case("LongCat", "longcat_flash", f"{_FAILS}|could not"),
    Case("GLM 4 MoE Lite", "glm4_moe_lite", _FAILS),
    Case("Youtu", "youtu", f"{_FAILS}|could not"),
    Case("Gemma 3n, text", "gemma3n_text", "small copy|paged cache"),
    Case("Gemma 4, text", "gemma4_text", "head_dim"),
    Case("Falcon", "falcon", _PAGED),
    Case("Bloom", "bloom", _PAGED),
    Case("MPT", "mpt", _PAGED),
    Case("GPT-J", "gptj", _PAGED),
    Case("GPT-Neo", "gpt_neo", _PAGED),
    Case("StableLM", "stablelm", _PAGED),
    Case("CodeGen", "codegen", _PAGED),
    Case("XGLM", "xglm", _PAGED),
    Case("Mamba", "mamba", _LAYERS),
    Case("Mamba 2", "mamba2", _LAYERS),
    Case("Jamba", "jamba", _LAYERS),
    Case("Bamba", "bamba", _LAYERS),
    Case("Qwen 3 Next", "qwen3_next", _LAYERS),
    Case("RecurrentGemma", "recurrent_gemma", _LAYERS),
    Case("Zamba 2", "zamba2", _LAYERS),
    Case("LFM 2", "lfm2", _LAYERS, HALF_CONVOLUTIONS),
    Case("Llama 4, text", "llama4_text", _LAYERS),
    Case("DeepSeek V3.2", "deepseek_v32", _LAYERS),
    Case("RWKV", "rwkv", _PAGED),
    Case("BERT", "bert", f"{_PAGED}|{_DIFFERS}"),
)  # fmt: skip


def make(case: Case, directory: Path) -> Any:
    """Writes a small model of an architecture, with a tokenizer, and gives it.

    None: its class does not take so small a configuration, and there is a `config.json` alone.
    """
    config = AutoConfig.for_model(case.model_type, **case.settings)
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    tokenizer = train_tokenizer(TOKENS)
    ids = special_ids(tokenizer)
    for part in (tokenizer, GenerationConfig(**ids)):
        part.save_pretrained(directory)
    torch.manual_seed(0)
    try:
        small = tiny(config)
        small.vocab_size = TOKENS
        for name, token in ids.items():
            setattr(small, name, token)
        model = model_class(small).eval()
    except Exception:  # the model is refused before: this is looked at by the test
        config.architectures = [model_class.__name__]
        config.save_pretrained(directory)
        return None
    randomise(model, seed=7)
    model.save_pretrained(directory)
    return model
