"""Which tokens may come next, followed over a real tokenizer."""

import json
import random
import re
from collections.abc import AsyncIterator
from pathlib import Path

import jsonschema
import pytest
from transformers import AutoTokenizer

from sllm.errors import InvalidArgument
from sllm.node.worker.model import grammars as model_grammars
from sllm.node.worker.model.grammars import Grammar, Grammars
from sllm.node.worker.model.matching import Limits
from sllm.structured_output.form import Form, Kind

VOCABULARY = 1100
"""Columns of logits: more than the tokenizer has tokens."""
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "sizes": {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 3},
        "kind": {"enum": ["one", "two", None]},
    },
    "required": ["name", "sizes", "kind"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}
CHOICES = ("for", "for the", "a statement")
EXPRESSION = r"[a-z]{3,6}-[0-9]{2}"
FORMS = {
    "schema": Form(Kind.JSON_SCHEMA, (json.dumps(SCHEMA),)),
    "expression": Form(Kind.REGEX, (EXPRESSION,)),
    "choices": Form(Kind.CHOICE, CHOICES),
    "grammar": Form(Kind.GRAMMAR, ('root ::= "(" root ")" | [0-9]',)),
}


@pytest.fixture
async def grammars(models: Path) -> AsyncIterator[Grammars]:
    tokenizer = AutoTokenizer.from_pretrained(models / "tiny-llama")
    grammars = Grammars(tokenizer, VOCABULARY, [tokenizer.eos_token_id])
    yield grammars
    grammars.close()


def may(grammar: Grammar) -> list[int]:
    allowed = grammar.allowed()
    if allowed is None:
        return []
    assert allowed.shape == (VOCABULARY,)
    return allowed.nonzero().flatten().tolist()


async def written(grammars: Grammars, form: Form, seed: int) -> list[int]:
    """A text of random tokens, of those that may come."""
    grammar, tokens, chance = await grammars.begin(form, ()), [], random.Random(seed)
    while grammar.ends_after is None:
        tokens.append(chance.choice(may(grammar)))
        grammar.take(tokens[-1])
    assert grammar.ends_after == len(tokens)
    return tokens


def has_form(name: str, text: str) -> bool:
    match name:
        case "schema":
            jsonschema.validate(json.loads(text), SCHEMA)
            return True
        case "expression":
            return bool(re.fullmatch(EXPRESSION, text))
        case "choices":
            return text in CHOICES
        case _:
            return bool(re.fullmatch(r"(\(*)\d(\)*)", text)) and text.count("(") == text.count(")")


@pytest.mark.parametrize("name", FORMS)
async def test_whatever_is_drawn_has_the_form(grammars: Grammars, models: Path, name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(models / "tiny-llama")
    for seed in range(20):
        tokens = await written(grammars, FORMS[name], seed)
        assert max(tokens) < len(tokenizer)
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        assert has_form(name, text), text


@pytest.mark.parametrize("name", FORMS)
async def test_from_any_token_on_the_same_may_come(grammars: Grammars, name: str) -> None:
    tokens = await written(grammars, FORMS[name], 1)
    whole = await grammars.begin(FORMS[name], ())
    for cut, token_id in enumerate(tokens):
        rest = await grammars.begin(FORMS[name], tokens[:cut])
        assert may(rest) == may(whole)
        assert rest.ends_after is None
        whole.take(token_id)
    assert (await grammars.begin(FORMS[name], tokens)).ends_after == len(tokens)


async def test_an_end_of_text_may_come_where_the_form_is_complete(grammars: Grammars) -> None:
    end = grammars._stop_token_ids[0]
    tokenizer = grammars._hf_tokenizer
    grammar = await grammars.begin(FORMS["choices"], ())
    assert end not in may(grammar)
    for token_id in tokenizer.encode("for", add_special_tokens=False):
        grammar.take(token_id)
    assert end in may(grammar)
    grammar.take(end)
    assert grammar.ends_after is not None
    assert grammar.allowed() is None


async def test_tokens_without_the_form_are_refused(grammars: Grammars) -> None:
    tokens = grammars._hf_tokenizer.encode("something else", add_special_tokens=False)
    with pytest.raises(InvalidArgument, match="none of a text of this regex"):
        await grammars.begin(FORMS["expression"], tokens)


async def test_a_model_without_an_end_of_text_has_forms_as_well(models: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(models / "tiny-llama")
    for ends in ([], [VOCABULARY + 7], [-1]):
        grammars = Grammars(tokenizer, VOCABULARY, ends)
        tokens = await written(grammars, FORMS["expression"], 3)
        assert has_form("expression", tokenizer.decode(tokens))
        grammars.close()


async def test_a_form_that_becomes_too_much_says_so(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_grammars, "_LIMITS", Limits(max_lexer_states=5))
    grammar = await grammars.begin(Form(Kind.REGEX, ("[a-f]{3,40}",)), ())
    for _ in range(30):
        if not may(grammar):
            break
        grammar.take(may(grammar)[0])
    assert may(grammar) == []
    assert grammar.ends_after is None
    assert "lexer" in grammar.problem


async def test_every_choice_can_be_written(grammars: Grammars) -> None:
    for text in ("\x7f", "\x00", 'a "quote"', "\u00e9\n\\", "\U0001f600", "\u2028"):
        tokens = await written(grammars, Form(Kind.CHOICE, (text,)), 0)
        assert grammars._hf_tokenizer.decode(tokens, skip_special_tokens=True) == text


async def test_a_tokenizers_padding_and_truncation_change_nothing(
    models: Path, grammars: Grammars
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(models / "tiny-llama")
    tokenizer.backend_tokenizer.enable_padding(length=64)
    tokenizer.backend_tokenizer.enable_truncation(8)
    others = Grammars(tokenizer, VOCABULARY, [tokenizer.eos_token_id])
    for form in FORMS.values():
        one, other = await grammars.begin(form, ()), await others.begin(form, ())
        for token in await written(grammars, form, seed=3):
            assert may(one) == may(other)
            one.take(token)
            other.take(token)
    others.close()
