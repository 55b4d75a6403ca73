"""A configuration made small: the same features, few layers, and hardly any weights.

transformers has several hundred configurations, which call the same thing by a few names. So fields
are known by their names, and whatever has no known name stays as it is.
"""

import copy
import re
from collections.abc import Mapping
from typing import Any

HEAD_DIM = 32
"""The smallest that vLLM's kernels for processors take."""
VOCABULARY = 64
CONTEXT = 512
"""Tokens that its positions allow, at most."""
ORIGINAL_CONTEXT = 64
"""Tokens that a model whose positions are stretched was trained on, in its small copy."""
WINDOW = 16
"""Tokens of a sliding window, and of a chunk of attention."""
SOFT_CAP = 2.0
"""Of scores of attention, so low that it shows."""
_WIDTH = 64
_RANK = 16
_EXPERTS = 4
_EXPERTS_USED = 2
_MOST_LAYERS = 4

_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_HEADS = ("num_attention_heads", "n_head", "n_heads")
_KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv")
_HIDDEN = ("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "embedding_size")
_BOUNDS = (
    (re.compile(r"vocab_size|.*_vocab_size.*"), VOCABULARY),
    (re.compile(r"(.*_)?(intermediate_size.*|ffn_dim|n_inner|ffn_hidden_size|d_ff)"), _WIDTH),
    (re.compile(r"(.*_)?lora_rank"), _RANK),
    (re.compile(r"qk_(rope|nope)_head_dim"), HEAD_DIM // 2),
    (
        re.compile(r"v_head_dim|query_pre_attn_scalar|.*attention_head_dim|global_head_dim|d_kv"),
        HEAD_DIM,
    ),
    (re.compile(r"num_(local_|routed_)?experts|(n_routed|moe_num)_experts"), _EXPERTS),
    (re.compile(r"(num_experts_per_tok|moe_topk|moe_top_k|moe_k|top_k_experts)"), _EXPERTS_USED),
    (re.compile(r"n_group|topk_group|num_expert_groups"), 1),
    (re.compile(r"first_k_dense_replace|num_dense_layers|moe_layer_start_index"), 1),
    (re.compile(r"max_position_embeddings|n_positions|n_ctx"), CONTEXT),
    (re.compile(r"attn.*softcap(ping)?"), SOFT_CAP),
    (re.compile(r"sliding_window|attention_chunk_size|window_size"), WINDOW),
)
"""Fields by their names, and what a number there is at most."""
_FACTORS = ("short_factor", "long_factor")


def tiny(config: Any) -> Any:
    """The configuration of a small copy of a model: same class, same features.

    Raises:
        Exception: Whatever the class raises for values that it does not take.
    """
    return type(config).from_dict(_shrunk(config.to_dict()))


def _shrunk(fields: Mapping[str, Any]) -> dict[str, Any]:
    small = _with_few_layers(fields)
    _stretch(small)
    for name, value in small.items():
        if isinstance(value, dict) and name.endswith("_config"):
            small[name] = _shrunk(value)
        else:
            small[name] = _bounded(name, value)
    _narrow(small)
    return small


def _bounded(name: str, value: Any) -> Any:
    if name.endswith(("token_id", "token_index")):  # none of them means anything here
        return [0] if isinstance(value, list) else None if value is None else 0
    if type(value) not in (int, float):
        return value
    return min([value, *(bound for pattern, bound in _BOUNDS if pattern.fullmatch(name))])


def _with_few_layers(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Keeps one layer of each kind, as lists with an entry for each layer tell kinds apart."""
    small: dict[str, Any] = copy.deepcopy(dict(fields))
    name = _first(small, _LAYERS)
    count = small.get(name) if name else None
    if name is None or type(count) is not int or count < 1:
        return small
    lists = [key for key, value in small.items() if isinstance(value, list) and len(value) == count]
    kept = _one_of_each(list(zip(*(map(repr, small[key]) for key in lists), strict=True)), count)
    for key in lists:
        small[key] = [small[key][index] for index in kept]
    small[name] = len(kept)
    if "max_window_layers" in small:
        small["max_window_layers"] = min(small["max_window_layers"] or 0, len(kept))
    return small


def _one_of_each(kinds: list[tuple[str, ...]], count: int) -> list[int]:
    """Indices of layers, two at least if there are as many: the first of each kind."""
    first: dict[tuple[str, ...], int] = {}
    for index, kind in enumerate(kinds):
        first.setdefault(kind, index)
    kept = sorted(first.values())[:_MOST_LAYERS]
    others = (index for index in range(count) if index not in kept)
    while len(kept) < min(2, count):
        kept.append(next(others))
    return sorted(kept)


def _narrow(small: dict[str, Any]) -> None:
    """Few heads of few numbers; whether heads share keys, and fill the width, stays as it was."""
    heads_name, hidden_name = _first(small, _HEADS), _first(small, _HIDDEN)
    if heads_name is None or hidden_name is None:
        return
    heads, hidden = small[heads_name], small[hidden_name]
    if type(heads) is not int or type(hidden) is not int or heads < 1:
        return
    keys_name = _first(small, _KEY_HEADS)
    keys = small[keys_name] if keys_name and type(small[keys_name]) is int else heads
    few_keys = min(max(keys, 1), 2)
    small[heads_name] = few_heads = few_keys * min(max(heads // max(keys, 1), 1), 2)
    if keys_name and small[keys_name] is not None:
        small[keys_name] = few_keys
    fills = small.get("head_dim") in (None, hidden // heads)
    if small.get("head_dim") is not None:
        small["head_dim"] = HEAD_DIM
    width = few_heads * HEAD_DIM * (1 if fills else 2)
    for name in _HIDDEN:
        if type(small.get(name)) is int:
            small[name] = width


def _stretch(small: dict[str, Any]) -> None:
    """Makes the original context of stretched positions so short that a trial gets past it."""
    scaling = small.get("rope_parameters") or small.get("rope_scaling")
    by_kind = scaling.values() if isinstance(scaling, dict) else ()
    found = [scaling, *(one for one in by_kind if isinstance(one, dict))]
    whole = small.get("max_position_embeddings")
    for one in [one for one in [*found, small] if isinstance(one, dict)]:
        original = one.get("original_max_position_embeddings")
        if type(original) is int and original > ORIGINAL_CONTEXT:
            one["original_max_position_embeddings"] = ORIGINAL_CONTEXT
            if type(whole) is int and whole > ORIGINAL_CONTEXT:
                small["max_position_embeddings"] = ORIGINAL_CONTEXT * max(1, whole // original)
        rotated = int(HEAD_DIM * (one.get("partial_rotary_factor") or 1.0))
        for name in _FACTORS:
            if isinstance(one.get(name), list):
                one[name] = one[name][: rotated // 2]


def _first(fields: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in fields), None)
