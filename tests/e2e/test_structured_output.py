"""Texts that have the form that was asked for, through the whole system and wherever they go on."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import sllm
from tests.e2e.cluster import Cluster
from tests.e2e.engines import others_at_night
from tests.e2e.generations import ask, moved, same, steps, two_instances
from tests.e2e.nights import paired

COMPACT = {"x-guidance": {"whitespace_flexible": False}}
"""A model of random weights would write blanks for ever."""
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "ages": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 4},
        "kind": {"enum": ["one", "two", None]},
    },
    "required": ["name", "ages", "kind"],
    "additionalProperties": False,
    **COMPACT,
}
LONG: dict[str, Any] = {
    "type": "array",
    "items": {"type": "string", "minLength": 3, "maxLength": 20},
    "minItems": 60,
    "maxItems": 60,
    **COMPACT,
}
FORMS: dict[str, sllm.StructuredOutput] = {
    "schema": {"json_schema": PERSON},
    "expression": {"regex": r"[A-Z][a-z]{2,9}, [0-9]{4}"},
    "choice": {"choice": ["yes", "no", "perhaps"]},
    "gbnf": {"grammar": 'root ::= "<" [a-z] [a-z] ">"'},
    "lark": {"grammar": 'start: "(" /[a-z]{1,4}/ ("," /[a-z]{1,4}/)~2 ")"'},
}


def check(name: str, text: str) -> None:
    match name:
        case "schema":
            jsonschema.validate(json.loads(text), PERSON)
        case "expression":
            assert re.fullmatch(r"[A-Z][a-z]{2,9}, [0-9]{4}", text)
        case "choice":
            assert text in ("yes", "no", "perhaps")
        case "gbnf":
            assert re.fullmatch(r"<[a-z]{2}>", text)
        case _:
            assert re.fullmatch(r"\([a-z]{1,4}(,[a-z]{1,4}){2}\)", text)


@pytest.fixture(scope="module")
def pair(cluster: Cluster, models: Path, engine: str) -> Iterator[Cluster]:
    with two_instances(cluster, "moving", models / "tiny-llama", engine):
        yield cluster


@pytest.fixture
async def client(pair: Cluster) -> AsyncIterator[sllm.AsyncClient]:
    async with sllm.AsyncClient(pair.control.address) as client:
        yield client


@pytest.mark.parametrize("name", FORMS)
async def test_each_form_is_kept(client: sllm.AsyncClient, name: str) -> None:
    draws: list[dict[str, Any]] = [{"temperature": 0.0}, *({"seed": seed} for seed in range(4))]
    for options in draws:
        result = await client.complete(
            "moving", "Once upon", structured_output=FORMS[name], max_tokens=200, **options
        )
        check(name, result.text)
        assert result.finish_reason == "STOP"


async def test_any_object_is_json_as_far_as_it_goes(client: sllm.AsyncClient) -> None:
    result = await client.complete(
        "moving", "Once", structured_output={"json_object": True}, max_tokens=30, seed=1
    )
    assert result.text.lstrip().startswith("{")


async def test_those_beside_it_are_as_they_would_be(client: sllm.AsyncClient) -> None:
    plain = [await ask(client, number, max_tokens=60).result() for number in range(4)]
    forms = [
        client.complete("moving", "Once", structured_output=form, max_tokens=200, seed=3)
        for form in FORMS.values()
    ]
    beside = [ask(client, number, max_tokens=60).result() for number in range(4)]
    found = await asyncio.gather(*beside, *forms)
    same(found[:4], plain)
    for name, result in zip(FORMS, found[4:], strict=True):
        check(name, result.text)


@others_at_night
@pytest.mark.parametrize(("at", "number"), paired(steps(1, 40, 111), [0, 1]))
async def test_it_moves_at_any_step(client: sllm.AsyncClient, number: int, at: int) -> None:
    options: dict[str, Any] = {
        "structured_output": {"json_schema": LONG},
        "max_tokens": at + 120,
        "ignore_eos": False,
    }
    expected = await ask(client, number, **options).result()
    stream, migration = await moved(client, lambda: ask(client, number, **options), at)
    same([await stream.result()], [expected])
    assert [one.outcome for one in migration.requests] == ["MOVED"]
    assert all(len(text) <= 20 for text in json.loads(_whole(expected.text)))


def _whole(text: str) -> str:
    """A list that may have been cut by the limit of tokens, and is whole again."""
    if text.endswith("]"):
        return text
    return text[: text.rindex('",')] + '"]'


async def test_what_needs_no_end_of_text_ends_by_itself(client: sllm.AsyncClient) -> None:
    result = await client.complete(
        "moving", "Once", structured_output=FORMS["gbnf"], ignore_eos=True, min_tokens=40, seed=2
    )
    check("gbnf", result.text)


async def test_the_least_number_of_tokens_gives_way_to_the_form(client: sllm.AsyncClient) -> None:
    result = await client.complete(
        "moving", "Once", structured_output=FORMS["schema"], min_tokens=190, max_tokens=200, seed=2
    )
    check("schema", result.text)
