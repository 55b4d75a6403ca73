"""Forms that can be had, those that cannot, and those that would be the end of whoever tried."""

import asyncio
import json
import sys
from typing import Any

import pytest

from sllm.errors import InvalidStructuredOutput, NoCapacity, QueueFull
from sllm.structured_output.checker import MAX_WAITING, Checker
from sllm.structured_output.form import MAX_CHOICES, MAX_LETTERS, Form, Kind

LONG = 30_000
MANY = {"minItems": 500_000, "maxItems": 50_000_000}


def schema(value: Any) -> Form:
    return Form(Kind.JSON_SCHEMA, (json.dumps(value),))


GOOD = {
    "an object": schema({"type": "object", "properties": {"a": {"type": "integer"}}}),
    "a reference": schema({"$ref": "#/$defs/a", "$defs": {"a": {"enum": [1, "b", None]}}}),
    "anything": schema(True),
    "any object": Form(Kind.JSON_OBJECT),
    "an expression": Form(Kind.REGEX, (r"[a-z]{2,5}( \p{L}+)?",)),
    "choices": Form(Kind.CHOICE, ("yes", "\x7f\x00", 'a "quote"', "\u00e9\n\\", "\U0001f600")),
    "lark": Form(Kind.GRAMMAR, ('start: "a" b*\nb: "b" | "c"',)),
    "gbnf": Form(Kind.GRAMMAR, ('root ::= "a" b*\nb ::= "b" | [c-e]',)),
}

BAD = {
    "no json": (Form(Kind.JSON_SCHEMA, ("{a",)), "line 1 column 2"),
    "json that is no schema": (schema([1]), "a schema is an object"),
    "a number": (schema(5), "a schema is an object"),
    "null": (schema(None), "a schema is an object"),
    "a dialect that is none": (schema({"$schema": ["x"]}), "cannot be used"),
    "an unknown type": (schema({"properties": {"b": {"type": "tuple"}}}), r"\$.properties.b.type"),
    "a reference to nowhere": (schema({"$ref": "#/$defs/a"}), "defs/a"),
    "a reference elsewhere": (schema({"$ref": "http://169.254.169.254/a"}), "http"),
    "nothing that could be": (schema({"allOf": [{"type": "null"}, {"type": "array"}]}), "nsatisf"),
    "what cannot be done": (schema({"not": {"type": "null"}}), "not"),
    "a pattern": (schema({"type": "string", "pattern": "("}), r"\$.pattern"),
    "an expression": (Form(Kind.REGEX, ("a(b",)), "unclosed"),
    "a look ahead": (Form(Kind.REGEX, ("(?=a)b",)), "look-around"),
    "an unknown rule": (Form(Kind.GRAMMAR, ('start: "a" b',)), "unknown name"),
    "an unknown rule of gbnf": (Form(Kind.GRAMMAR, ('root ::= "a" b',)), "'b' not found"),
    "gbnf without an end": (Form(Kind.GRAMMAR, ('root ::= "a',)), "end of input at line 1"),
    "nothing at all": (Form(Kind.REGEX, ("",)), "empty"),
    "no choice": (Form(Kind.CHOICE), "empty"),
    "an empty choice": (Form(Kind.CHOICE, ("a", "")), "empty"),
    "too many choices": (Form(Kind.CHOICE, ("a",) * (MAX_CHOICES + 1)), str(MAX_CHOICES)),
    "too much": (Form(Kind.REGEX, ("a" * (MAX_LETTERS + 1),)), str(MAX_LETTERS)),
}

HOSTILE = {
    "references in a row": schema(
        {"$ref": "#/$defs/0", "$defs": {str(n): {"$ref": f"#/$defs/{n + 1}"} for n in range(1800)}}
    ),
    "rules in a row": Form(
        Kind.GRAMMAR, ("\n".join(["start: r0", *(f"r{n}: r{n + 1}" for n in range(4000))]),)
    ),
    "brackets": Form(Kind.GRAMMAR, ("start: " + "(" * LONG + '"a"' + ")" * LONG,)),
    "brackets of gbnf": Form(Kind.GRAMMAR, ("root ::= " + "(" * LONG + '"a"' + ")" * LONG,)),
    "groups": Form(Kind.REGEX, ("(" * LONG + "a" + ")" * LONG,)),
    "lists in lists": Form(Kind.JSON_SCHEMA, ('{"items":' * 6000 + "{}" + "}" * 6000,)),
    "a list without end": schema({"type": "array", "items": {"type": "array", **MANY}, **MANY}),
}


@pytest.fixture
def checker() -> Checker:
    return Checker()


@pytest.mark.parametrize("name", GOOD)
async def test_what_can_be_had_is_let_through(checker: Checker, name: str) -> None:
    await checker.check(GOOD[name])


@pytest.mark.parametrize("name", BAD)
async def test_what_cannot_is_refused_with_the_place(checker: Checker, name: str) -> None:
    form, said = BAD[name]
    for _ in range(2):  # the second time by heart
        with pytest.raises(InvalidStructuredOutput, match=said):
            await checker.check(form)


async def test_whoever_leaves_does_not_end_what_was_begun(checker: Checker) -> None:
    """And takes no more of the machine by coming again."""
    known = Form(Kind.REGEX, ("known",))
    await checker.check(known)
    asked = [
        asyncio.create_task(checker.check(Form(Kind.REGEX, (f"a{{{n}}}",))))
        for n in range(MAX_WAITING)
    ]
    await asyncio.sleep(0)
    with pytest.raises(QueueFull, match="try again later"):
        await checker.check(Form(Kind.REGEX, ("b",)))
    await checker.check(known)  # which takes no process
    for one in asked:
        one.cancel()
    await asyncio.wait(asked)
    await checker.check(Form(Kind.REGEX, ("b",)))
    checker.close()


async def test_what_comes_to_nothing_is_tried_again(
    checker: Checker, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = Form(Kind.REGEX, ("abc",))
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/bin/false")
        with pytest.raises(NoCapacity):
            await checker.check(form)
    await checker.check(form)


@pytest.mark.parametrize("name", HOSTILE)
async def test_what_takes_too_much_ends_a_process_of_its_own(checker: Checker, name: str) -> None:
    with pytest.raises(InvalidStructuredOutput, match="cannot be used"):
        await checker.check(HOSTILE[name])
