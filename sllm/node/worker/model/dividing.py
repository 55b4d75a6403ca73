"""Whether a model can be divided among several processes, by what its configuration says."""

from sllm.errors import UnsupportedModel
from sllm.node.worker.model.description import Architecture

_DIVIDED = (
    ("num_attention_heads", "attention heads"),
    ("intermediate_size", "numbers in its inner layers"),
    ("moe_intermediate_size", "numbers in its experts"),
    ("shared_expert_intermediate_size", "numbers in its shared expert"),
    ("n_inner", "numbers in its inner layers"),
    ("ffn_dim", "numbers in its inner layers"),
)
"""What each process has its part of, as configurations call it, and in words."""
_PADDED_TO = 64
"""Rows of embeddings, which vLLM adds to a vocabulary before it divides it."""


def check_divisible(architecture: Architecture, ranks: int) -> None:
    """Refuses what vLLM cannot divide into so many equal parts.

    Raises:
        UnsupportedModel: With the numbers.
    """
    text = architecture.config.get_text_config()
    for field, what in _DIVIDED:
        count = getattr(text, field, None)
        if isinstance(count, int) and count % ranks:
            raise _refusal(architecture, ranks, f"{count} {what}")
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    if heads % ranks and ranks % heads:
        raise _refusal(architecture, ranks, f"{heads} heads of keys and values")
    rows = -(-text.vocab_size // _PADDED_TO) * _PADDED_TO
    if rows % ranks:
        raise _refusal(architecture, ranks, f"{rows} rows of embeddings")


def _refusal(architecture: Architecture, ranks: int, what: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"tensor_parallel is {ranks}, and the model has {what}, which cannot be divided into "
        f"{ranks} equal parts; choose a number that divides it",
        metadata={"architecture": architecture.name},
    )
