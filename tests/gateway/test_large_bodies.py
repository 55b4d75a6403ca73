"""Bodies that cost more than they are worth: refused by the first thing that is wrong with them."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from sllm import errors
from sllm.gateway.bodies import checked, parsed
from sllm.gateway.fields import ForeignFields
from sllm.gateway.openai.completion_request import CompletionRequest
from sllm.gateway.openai.embeddings import EmbeddingRequest
from tests.gateway.test_http_table import KINDS

MANY = 3_000
WRONG: dict[str, Any] = {
    "numbers": [1] * MANY,
    "numbers, and a text": [*[1] * MANY, "a"],
    "texts": ["a"] * MANY,
    "texts, and a number": [*["a"] * MANY, 1],
    "truths": [True] * MANY,
    "lists": [[1, "a"]] * MANY,
    "lists of one": [[None] * MANY],
    "objects": [{"a": 1}] * MANY,
    "fields": {str(number): None for number in range(MANY)},
    "texts by name": {str(number): "a" for number in range(MANY)},
}
FIELDS = [(route, name) for route, (kind, *_) in KINDS.items() for name in kind.model_fields]


@pytest.mark.parametrize(("route", "name"), FIELDS)
def test_no_field_tells_of_each_of_its_items(route: str, name: str) -> None:
    kind, _, good = KINDS[route]
    for wrong in WRONG.values():
        _few_errors(kind, {**good, name: wrong})


@pytest.mark.parametrize("route", KINDS)
def test_nor_of_each_unknown_field(route: str) -> None:
    kind, _, good = KINDS[route]
    _few_errors(kind, {**good, **WRONG["fields"]})


def _few_errors(kind: type[ForeignFields], body: dict[str, Any]) -> None:
    count = 0
    try:
        kind.model_validate(body)
    except ValidationError as error:
        count = error.error_count()
    assert count <= 3
    if count:
        with pytest.raises(errors.InvalidArgument) as caught:
            checked(kind, body)
        assert len(caught.value.message) < 1000


FORMS: list[Any] = ["a", ["a", "b"], [1, 2], [[1], [2, 3]]]


@pytest.mark.parametrize("given", FORMS)
def test_prompts_keep_their_form(given: Any) -> None:
    assert checked(CompletionRequest, {"model": "a", "prompt": given}).prompt == given
    assert checked(EmbeddingRequest, {"model": "a", "input": given}).input == given


@pytest.mark.parametrize("given", [None, 1, {}, [None], [1, "a"], ["a", 1], [[1], "a"], [True]])
def test_prompts_of_no_form(given: Any) -> None:
    with pytest.raises(errors.InvalidArgument, match=r"^prompt"):
        checked(CompletionRequest, {"model": "a", "prompt": given})


@pytest.mark.parametrize("depth", [99, 101, 500, 970, 5000])
@pytest.mark.parametrize("inner", ['{"a":', "["])
def test_depth(depth: int, inner: str) -> None:
    close = "}" if inner != "[" else "]"
    body = f'{{"a":{inner * (depth - 1)}1{close * (depth - 1)}}}'.encode()
    if inner == "[":
        body = body.replace(b"1", b"")
    if depth > 100:
        with pytest.raises(errors.InvalidArgument):
            parsed(body)
    else:
        parsed(body)


HALVES = [
    rb'{"a": "\ud800"}',
    rb'{"\uDC00": 1}',
    b'{"a": "\xed\xa0\x80"}',
    rb'{"a": ["\ude00\ud83d"]}',
]


@pytest.mark.parametrize("body", HALVES)
def test_half_a_character(body: bytes) -> None:
    with pytest.raises(errors.InvalidArgument):
        parsed(body)


def test_whole_characters() -> None:
    text = "\N{GRINNING FACE}\\ud800"
    for ascii_only in (True, False):
        assert parsed(json.dumps({"a": text}, ensure_ascii=ascii_only).encode()) == {"a": text}
