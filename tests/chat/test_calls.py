"""The form of answers that are calls: what matches it is a call, and nothing else is."""

import json
from typing import Any

import jsonschema
import pytest

from sllm.chat.calls import call_id, call_schema
from sllm.chat.conversation import Tool, ToolChoice, ToolChoiceMode
from sllm.errors import InvalidPrompt
from sllm.structured_output.checker import Checker
from sllm.structured_output.form import Form, Kind

REQUIRED = ToolChoice(ToolChoiceMode.REQUIRED)
POINT: dict[str, Any] = {
    "type": "object",
    "properties": {"at": {"$ref": "#/$defs/Point"}, "next": {"$ref": "#"}},
    "required": ["at"],
    "additionalProperties": False,
    "$defs": {"Point": {"type": "object", "properties": {"x": {"type": "integer"}}}},
}
TOOLS = [
    Tool("now", "", ""),
    Tool("go", "", json.dumps(POINT)),
    Tool("come", "", json.dumps(POINT)),
]


def call(name: str, parameters: object) -> dict[str, object]:
    return {"name": name, "parameters": parameters}


@pytest.mark.parametrize(
    ("answer", "fits"),
    [
        ([call("now", {})], True),
        ([call("go", {"at": {"x": 1}})], True),
        ([call("go", {"at": {"x": 1}, "next": {"at": {}}}), call("now", {})], True),
        ([call("go", {"at": {"x": "one"}})], False),
        ([call("go", {"at": {"x": 1}, "next": {}})], False),
        ([call("go", {})], False),
        ([call("stay", {})], False),
        ([], False),
        ({}, False),
    ],
)
def test_calls_have_the_form_and_nothing_else_has(answer: object, fits: bool) -> None:
    schema = json.loads(call_schema(REQUIRED, TOOLS))
    assert jsonschema.Draft202012Validator(schema).is_valid(answer) is fits


def test_a_named_call_has_the_form_of_its_parameters() -> None:
    schema = json.loads(call_schema(ToolChoice(function="go"), TOOLS))
    assert {key: schema[key] for key in POINT} == POINT


@pytest.mark.parametrize("choice", [REQUIRED, ToolChoice(function="go")])
async def test_texts_can_be_generated_in_it(choice: ToolChoice) -> None:
    checker = Checker()
    try:
        await checker.check(Form(Kind.JSON_SCHEMA, (call_schema(choice, TOOLS),)))
    finally:
        checker.close()


@pytest.mark.parametrize(
    "parameters", ['{"type": "string"}', "[1]", "{", '{"a": ' * 400 + "{}" + "}" * 400]
)
def test_parameters_that_are_none_are_refused(parameters: str) -> None:
    try:
        call_schema(REQUIRED, [Tool("a", "", parameters)])
    except InvalidPrompt:
        return
    assert parameters.startswith('{"a": {'), "deep ones may pass here, and are looked at later"


def test_ids_of_calls_are_their_own() -> None:
    ids = {call_id(request, index) for request in ("a", "b") for index in range(3)}
    assert len(ids) == 6
    assert call_id("a", 1) == call_id("a", 1)
