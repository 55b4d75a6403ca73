"""Every field of a request, sent through the whole system to each engine, against transformers.

What transformers' own `generate` has no option for is held elsewhere: presence and frequency
penalties against vLLM's sampler (tests/node/worker/engine/test_token_fields.py), forms,
conversations and parsers in tests of their own.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import sllm
from tests.e2e.cluster import Cluster

PROMPT = "Once upon a time there was"
TOKENS = 24


class Library:
    """transformers, called directly."""

    def __init__(self, directory: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(directory)
        self.prompt = self.tokenizer(PROMPT, return_tensors="pt")["input_ids"]
        self.free = self.tokens()
        """Without any option."""

    def generate(self, **options: Any) -> Any:
        options = {"max_new_tokens": TOKENS, "do_sample": False, **options}
        return self.model.generate(
            self.prompt,
            attention_mask=torch.ones_like(self.prompt),
            return_dict_in_generate=True,
            pad_token_id=0,
            **{"eos_token_id": -1, **options},
        )

    def tokens(self, **options: Any) -> list[int]:
        found: list[int] = self.generate(**options).sequences[0, self.prompt.shape[1] :].tolist()
        return found

    def words(self) -> tuple[list[str], list[list[int]]]:
        """Two that come, each a token of its own, and all tokens that are one of them."""

        def encoded(text: str) -> list[int]:
            found: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
            return found

        texts = {token: self.tokenizer.decode([token]) for token in self.free}
        alone = [text for token, text in texts.items() if encoded(text) == [token]][:2]
        assert len(alone) == 2
        spaced = [encoded(" " + text.lstrip()) for text in alone]
        return alone, [*map(encoded, alone), *(one for one in spaced if len(one) == 1)]


@dataclass(frozen=True)
class Case:
    """A field, as it is sent to us and as transformers has it."""

    sent: dict[str, Any] = field(default_factory=dict)
    library: dict[str, Any] = field(default_factory=dict)
    changes: bool = True
    """Whether it makes a difference to the tokens."""


def cases(library: Library) -> dict[str, Case]:
    free, vocabulary = library.free, library.model.config.vocab_size
    biases = {free[0]: -30.0, free[1]: -30.0, free[5]: -4.5}
    allowed = sorted({*range(0, vocabulary, 3)} - {free[0]})
    words, word_ids = library.words()
    greedy = {"temperature": 0.0}
    return {
        "temperature": Case(greedy, changes=False),
        "max_tokens": Case(greedy | {"max_tokens": 7}, {"max_new_tokens": 7}),
        "top_k": Case({"top_k": 1, "seed": 1}, changes=False),
        "top_p": Case({"top_p": 1e-6, "seed": 1}, changes=False),
        "min_p": Case({"min_p": 1.0, "seed": 1}, changes=False),
        "repetition_penalty": Case(
            greedy | {"repetition_penalty": 1.7}, {"repetition_penalty": 1.7}
        ),
        "logit_bias": Case(
            greedy | {"logit_bias": biases},
            {"sequence_bias": {(token,): bias for token, bias in biases.items()}},
        ),
        "allowed_token_ids": Case(
            greedy | {"allowed_token_ids": allowed},
            {"prefix_allowed_tokens_fn": lambda batch, tokens: allowed},
        ),
        "bad_words": Case(greedy | {"bad_words": words}, {"bad_words_ids": word_ids}),
        "stop_token_ids": Case(greedy | {"stop_token_ids": [free[9]]}, {"eos_token_id": [free[9]]}),
        "min_tokens": Case(
            greedy | {"stop_token_ids": free[:4], "min_tokens": 6},
            {"eos_token_id": free[:4], "min_new_tokens": 6},
        ),
        "stop": Case(
            greedy | {"stop": library.tokenizer.decode(free[10:12])},
            {
                "stop_strings": [library.tokenizer.decode(free[10:12])],
                "tokenizer": library.tokenizer,
            },
        ),
        "prompt_token_ids": Case(
            greedy | {"prompt": None, "prompt_token_ids": library.prompt[0].tolist()},
            changes=False,
        ),
    }


NAMES = (
    *("temperature", "max_tokens", "top_k", "top_p", "min_p", "repetition_penalty", "logit_bias"),
    *("allowed_token_ids", "bad_words", "stop_token_ids", "min_tokens", "stop"),
    "prompt_token_ids",
)


@pytest.fixture(scope="module")
def library(models: Path) -> Library:
    return Library(models / "tiny-llama")


@pytest.fixture(scope="module")
def deployed(cluster: Cluster, models: Path, engine: str) -> Iterator[str]:
    source = f"file://{models / 'tiny-llama'}"
    cluster.client.deploy("fields", source, engine=engine, dtype="float32", keep_alive=30.0)
    yield "fields"
    cluster.client.delete("fields")
    cluster.wait_for_instances(0)


def ask(cluster: Cluster, name: str, **options: Any) -> sllm.Result:
    given = {"prompt": PROMPT, "max_tokens": TOKENS, "ignore_eos": True, **options}
    return cluster.client.complete(name, given.pop("prompt"), **given)


def test_the_table_is_whole(library: Library) -> None:
    assert tuple(cases(library)) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_field_does_what_it_does_in_the_library(
    cluster: Cluster, deployed: str, library: Library, name: str
) -> None:
    case = cases(library)[name]
    expected = library.tokens(**case.library)
    assert list(ask(cluster, deployed, **case.sent).token_ids) == expected
    assert (expected != library.free) == case.changes


def test_the_end_of_text_ends_it_unless_it_is_ignored(
    cluster: Cluster, deployed: str, library: Library
) -> None:
    ends = library.model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    for bias in (100.0, 0.0):
        biased = {"logit_bias": {ends[0]: bias}, "temperature": 0.0}
        expected = library.tokens(sequence_bias={(ends[0],): bias}, eos_token_id=ends)
        found = ask(cluster, deployed, **biased, ignore_eos=False)
        assert list(found.token_ids) == expected
        goes_on = ask(cluster, deployed, **biased)
        assert list(goes_on.token_ids) == library.tokens(sequence_bias={(ends[0],): bias})


def test_logprobs_are_the_librarys(cluster: Cluster, deployed: str, library: Library) -> None:
    output = library.generate(output_logits=True)
    expected = torch.stack(output.logits)[:, 0].log_softmax(-1)
    found = ask(cluster, deployed, temperature=0.0, logprobs=3)
    assert found.logprobs
    for row, token, told in zip(expected, found.token_ids, found.logprobs, strict=True):
        assert told.logprob == pytest.approx(float(row[token]), abs=1e-4)
        best = row.topk(3)
        assert [one.token_id for one in told.top] == best.indices.tolist()
        assert [one.logprob for one in told.top] == pytest.approx(best.values.tolist(), abs=1e-4)


def test_text_is_what_the_librarys_tokenizer_makes(
    cluster: Cluster, deployed: str, library: Library
) -> None:
    end = library.tokenizer.decode(library.free[10:12])
    whole = library.tokenizer.decode(library.free, skip_special_tokens=False)
    plain = ask(cluster, deployed, temperature=0.0, skip_special_tokens=False)
    assert plain.text == whole
    stopped = ask(cluster, deployed, temperature=0.0, stop=end)
    assert whole.startswith(stopped.text + end)
    assert ask(cluster, deployed, temperature=0.0, stop=end, include_stop=True).text == (
        stopped.text + end
    )
