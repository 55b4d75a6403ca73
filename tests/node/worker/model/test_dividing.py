"""What can be divided among several processes."""

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from sllm import errors
from sllm.node.worker.model.description import Architecture
from sllm.node.worker.model.dividing import check_divisible


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"vocab_size": 250}, "256 rows of embeddings"),
        ({"vocab_size": 300}, "320 rows of embeddings"),
        ({"shared_expert_intermediate_size": 64}, "64 numbers in its shared expert"),
        ({"moe_intermediate_size": 64}, "64 numbers in its experts"),
        ({"intermediate_size": 64}, "64 numbers in its inner layers"),
        ({"num_attention_heads": 8}, "8 attention heads"),
        ({"num_key_value_heads": 2}, "2 heads of keys and values"),
    ],
)
def test_what_vllm_divides_must_be_divisible(changed: dict[str, int], what: str) -> None:
    sizes = {"num_attention_heads": 6, "num_key_value_heads": 6, "hidden_size": 48}
    sizes |= {"intermediate_size": 66, "vocab_size": 191, "num_hidden_layers": 1}
    architecture = Architecture(LlamaConfig(**sizes), LlamaForCausalLM)
    check_divisible(architecture, 3)
    changing = Architecture(LlamaConfig(**sizes | changed), LlamaForCausalLM)
    with pytest.raises(errors.UnsupportedModel, match=f"tensor_parallel is 3.*{what}"):
        check_divisible(changing, 3)
