"""docs/http.md has every field of the other protocols, and says of each what is so."""

import re
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from anthropic.types import message_count_tokens_params, message_create_params
from openai.types import (
    batch_create_params,
    completion_create_params,
    embedding_create_params,
)
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params

from sllm import errors
from sllm.gateway.anthropic.requests import CountRequest, MessageRequest
from sllm.gateway.app import ENDPOINTS
from sllm.gateway.bodies import checked
from sllm.gateway.fields import ForeignFields
from sllm.gateway.openai.batches import BatchBody
from sllm.gateway.openai.chat_request import ChatRequest
from sllm.gateway.openai.completion_request import CompletionRequest
from sllm.gateway.openai.embeddings import EmbeddingRequest
from sllm.gateway.openai.response_request import ResponseRequest
from sllm.gateway.tokens import DetokenizeRequest, TokenizeRequest

PAGE = (Path(__file__).parents[2] / "docs" / "http.md").read_text()
ROW = re.compile(r"^\| `(\w+)` \| (\w+) \| (.*) ?\|$", re.MULTILINE)
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
KINDS: dict[str, tuple[type[ForeignFields], Any, dict[str, Any]]] = {
    "POST /v1/chat/completions": (
        ChatRequest,
        chat_create_params.CompletionCreateParamsBase,
        CHAT,
    ),
    "POST /v1/completions": (
        CompletionRequest,
        completion_create_params.CompletionCreateParamsBase,
        {"model": "tiny", "prompt": "Hi"},
    ),
    "POST /v1/responses": (
        ResponseRequest,
        response_create_params.ResponseCreateParamsBase,
        {"model": "tiny", "input": "Hi"},
    ),
    "POST /v1/embeddings": (
        EmbeddingRequest,
        embedding_create_params.EmbeddingCreateParams,
        {"model": "tiny", "input": "Hi"},
    ),
    "POST /v1/batches": (
        BatchBody,
        batch_create_params.BatchCreateParams,
        {
            "completion_window": "24h",
            "endpoint": "/v1/completions",
            "input_file_id": "file-1",
        },
    ),
    "POST /v1/messages": (
        MessageRequest,
        message_create_params.MessageCreateParamsBase,
        {**CHAT, "max_tokens": 5},
    ),
    "POST /v1/messages/count_tokens": (
        CountRequest,
        message_count_tokens_params.MessageCountTokensParams,
        CHAT,
    ),
    "POST /tokenize": (TokenizeRequest, None, {"model": "tiny", "prompt": "Hi"}),
    "POST /detokenize": (DetokenizeRequest, None, {"model": "tiny", "tokens": [1]}),
}
"""Of each route its fields here, those of the protocol's own package, and a good request."""
FIELDS = [(route, name) for route, (kind, *_) in KINDS.items() for name in kind.REFUSED]
HARMLESS = [(route, name) for route, (kind, *_) in KINDS.items() for name in kind.HARMLESS]


def rows(route: str) -> dict[str, str]:
    section = PAGE.partition(f"\n## {route}\n")[2].partition("\n## ")[0]
    return {name: is_ for name, is_, _ in ROW.findall(section)}


@pytest.mark.parametrize("route", KINDS)
def test_the_table_says_what_is_so(route: str) -> None:
    kind, *_ = KINDS[route]
    assert rows(route) == {
        **dict.fromkeys(kind.model_fields, "served"),
        **dict.fromkeys(kind.HARMLESS, "harmless"),
        **dict.fromkeys(kind.REFUSED, "refused"),
    }


@pytest.mark.parametrize("route", [route for route, (_, foreign, _) in KINDS.items() if foreign])
def test_it_has_every_field_of_the_protocol(route: str) -> None:
    _, foreign, _ = KINDS[route]
    assert not set(get_type_hints(foreign)) - set(rows(route))


def test_every_route_that_takes_fields_is_in_it() -> None:
    assert {f"{one.method} {one.path}" for one in ENDPOINTS if one.body} == set(KINDS)


@pytest.mark.parametrize(("route", "name"), FIELDS)
def test_what_is_refused_is_named(route: str, name: str) -> None:
    kind, _, good = KINDS[route]
    with pytest.raises(errors.InvalidArgument) as caught:
        checked(kind, {**good, name: {"anything": "else"}})
    assert caught.value.metadata["param"] == name
    for neutral in (None, *kind.REFUSED[name].neutral):
        assert checked(kind, {**good, name: neutral}) == checked(kind, good)


@pytest.mark.parametrize(("route", "name"), HARMLESS)
def test_what_is_harmless_is_taken(route: str, name: str) -> None:
    kind, _, good = KINDS[route]
    assert checked(kind, {**good, name: {"any": "thing"}}) == checked(kind, good)
