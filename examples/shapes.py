"""The shapes of published models, and tiny ones of the same families for tests."""

from typing import Any

Shape = dict[str, Any]
"""What a model's `config.json` holds: `model_type`, sizes, and the `dtype` of the weights."""


def _llama(**sizes: Any) -> Shape:
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "rms_norm_eps": 1e-5,
        **sizes,
    }


def _qwen2(**sizes: Any) -> Shape:
    return {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        **sizes,
    }


def _gpt2(**sizes: Any) -> Shape:
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "dtype": "float32",
        "tie_word_embeddings": True,
        **sizes,
    }


def _opt(hidden: int, layers: int, heads: int, **sizes: Any) -> Shape:
    return {
        "model_type": "opt",
        "architectures": ["OPTForCausalLM"],
        "dtype": "float16",
        "vocab_size": 50_272,
        "hidden_size": hidden,
        "word_embed_proj_dim": hidden,
        "ffn_dim": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        **sizes,
    }


def _rope(theta: float, **scaling: Any) -> Shape:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta, **scaling}}


_LLAMA_3_ROPE = _rope(
    500_000.0,
    rope_type="llama3",
    factor=32.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=8192,
)

_TINY: Shape = {"dtype": "float32", "vocab_size": 1024}

_TINY_GROUPED_QUERY: Shape = {
    **_TINY,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}

SHAPES: dict[str, Shape] = {
    "tiny-llama": _llama(**_TINY_GROUPED_QUERY),
    "tiny-qwen2": _qwen2(**_TINY_GROUPED_QUERY),
    "tiny-opt": _opt(128, 3, 4, **_TINY, max_position_embeddings=512),
    "tiny-gpt2": _gpt2(**_TINY, n_embd=128, n_layer=3, n_head=4, n_positions=512),
    "small-llama": _llama(  # 57 MB
        dtype="float32",
        vocab_size=1024,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=1024,
    ),
    "gpt2": _gpt2(),
    "opt-125m": _opt(768, 12, 12),
    "opt-1.3b": _opt(2048, 24, 32),
    "opt-6.7b": _opt(4096, 32, 32),
    "opt-13b": _opt(5120, 40, 40),
    "qwen2-0.5b": _qwen2(
        dtype="bfloat16",
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=32_768,
        max_window_layers=24,
        **_rope(1_000_000.0),
    ),
    "llama-3.2-1b": _llama(
        dtype="bfloat16",
        vocab_size=128_256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=131_072,
        tie_word_embeddings=True,
        **_LLAMA_3_ROPE,
    ),
    "llama-2-7b": _llama(
        dtype="float16",
        vocab_size=32_000,
        hidden_size=4096,
        intermediate_size=11_008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        max_position_embeddings=4096,
    ),
}
