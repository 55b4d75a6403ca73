from pathlib import Path

import pytest
from transformers import AutoTokenizer

from sllm.errors import InvalidSampling
from sllm.node.worker.model import words
from sllm.sampling import Sampling


@pytest.fixture(scope="module")
def tokenizer(models: Path) -> AutoTokenizer:
    return AutoTokenizer.from_pretrained(models / "tiny-llama")


def test_words_are_forbidden_as_a_text_begins_with_them_and_within(
    tokenizer: AutoTokenizer,
) -> None:
    (word,) = ("the",)
    found = words.sequences([word, f" {word}", word], tokenizer, 10**6)
    texts = {tokenizer.decode(list(one)) for one in found}
    assert word in {text.strip() for text in texts}
    assert len(found) == len(set(found))


def test_as_vllm_has_it(tokenizer: AutoTokenizer) -> None:
    params = pytest.importorskip("vllm").SamplingParams(bad_words=["the", "statement", "x y"])
    tokenizer.max_token_id = len(tokenizer) - 1  # as vLLM's own tokenizers have it
    params.update_from_tokenizer(tokenizer)
    expected = [tuple(one) for one in params.bad_words_token_ids]
    assert list(words.sequences(["the", "statement", "x y"], tokenizer, 10**6)) == expected


@pytest.mark.parametrize(
    "sampling",
    [Sampling(logit_bias=((100, 1.0),)), Sampling(allowed_token_ids=(1, 100))],
)
def test_unknown_tokens_are_named(sampling: Sampling) -> None:
    words.check_known(sampling, 101)
    with pytest.raises(InvalidSampling, match="token 100, and the model's vocabulary ends at 99"):
        words.check_known(sampling, 100)


def test_what_can_only_end_at_once_has_no_least_length() -> None:
    sampling = Sampling(allowed_token_ids=(1, 2), min_tokens=1)
    words.check_endless(sampling, frozenset({1}))
    words.check_endless(Sampling(allowed_token_ids=(1,)), frozenset({1}))
    with pytest.raises(InvalidSampling, match="min_tokens"):
        words.check_endless(sampling, frozenset({1, 2, 3}))


def test_words_with_tokens_that_the_model_lacks_are_left_out(tokenizer: AutoTokenizer) -> None:
    (plain, *_) = words.sequences(["the"], tokenizer, 10**6)
    assert plain not in words.sequences(["the"], tokenizer, max(plain))
