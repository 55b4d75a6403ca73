"""llguidance by its C interface, held against its own Python classes."""

import gc
import json
import random
from collections.abc import Callable
from ctypes import byref
from pathlib import Path

import numpy as np
import pytest
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from sllm.node.worker.model import matching
from sllm.node.worker.model.matching import Limits, Mask, Matcher, TokenTree

TOKENS = 1200
"""More than any of the tokenizers has."""
SPACE = "\u2581"
GRAMMARS = {
    "schema": LLMatcher.grammar_from_json_schema(
        '{"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "number"}}}'
    ),
    "expression": LLMatcher.grammar_from_regex(r"[a-z ]{1,9}(\n|\u00e9|<)*"),
    "names a token": json.dumps({"grammars": [{"lark_grammar": 'start: <call> "a" /[a-c]*/'}]}),
}


def byte_fallback() -> Tokenizer:
    """As sentencepiece's: a sign for spaces, and bytes by their numbers."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), SPACE, *"abcdefgh"]
    known = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(known, [], byte_fallback=True, unk_token="<unk>"))
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback()])
    return tokenizer


def begins_with_a_space() -> Tokenizer:
    """As Llama 2's, which takes a text to begin with a space."""
    tokenizer = byte_fallback()
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    )
    return tokenizer


def byte_level() -> Tokenizer:
    """As GPT-2's."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def with_names(made: Callable[[], Tokenizer]) -> Tokenizer:
    """A tokenizer that knows of calls, as a plain token and as a special one, and of their ends."""
    tokenizer = made()
    tokenizer.add_tokens([AddedToken("<call>", special=False), AddedToken("more", special=False)])
    tokenizer.add_special_tokens([AddedToken("</call>", special=True)])
    return tokenizer


@pytest.fixture(params=["a model's", "byte_fallback", "begins_with_a_space", "byte_level"])
def tokenizer(request: pytest.FixtureRequest, models: Path) -> Tokenizer:
    if request.param == "a model's":
        backend = AutoTokenizer.from_pretrained(models / "tiny-llama").backend_tokenizer
        return with_names(lambda: backend)
    return with_names(globals()[request.param])


def theirs(matcher: LLMatcher) -> list[int]:
    words = allocate_token_bitmask(1, TOKENS)
    fill_next_token_bitmask(matcher, words)
    return bits(words[0])


def ours(matcher: Matcher) -> list[int]:
    matcher.fill(mask := matcher.new_mask())
    return bits(mask)


def bits(words: Mask) -> list[int]:
    unpacked = np.unpackbits(words.view(np.uint8), bitorder="little")
    return [int(token) for token in unpacked[:TOKENS].nonzero()[0]]


@pytest.mark.parametrize("name", GRAMMARS)
def test_the_same_tokens_may_come_as_with_the_python_classes(
    tokenizer: Tokenizer, name: str
) -> None:
    tree = TokenTree(tokenizer, tokens=TOKENS, ends=[0, 1])
    known = LLTokenizer(tokenizer.to_str(), n_vocab=TOKENS, eos_token=[0, 1])
    for seed in range(5):
        chance = random.Random(seed)
        one, other = Matcher(tree, GRAMMARS[name], Limits()), LLMatcher(known, GRAMMARS[name])
        for _ in range(12):
            assert (one.is_stopped(), one.problem()) == (other.is_stopped(), other.get_error())
            if one.is_stopped():
                break
            may = ours(one)
            assert may == theirs(other)
            token = chance.choice(may)
            assert one.consume([token])
            assert other.consume_token(token)


def test_a_text_that_goes_on_has_the_tokens_of_the_python_classes(tokenizer: Tokenizer) -> None:
    known = LLTokenizer(tokenizer.to_str(), n_vocab=TOKENS, eos_token=[0])
    for text in ("a", " a", "abc", '{"a":', "\u00e9\n  ", "more<call>", "\x02", ""):
        assert matching.text_tokens(tokenizer, text) == known.tokenize_str(text), text


def test_padding_and_truncation_are_left_out(tokenizer: Tokenizer) -> None:
    tokenizer.enable_padding(length=20)
    assert matching.text_tokens(tokenizer, "abc") == matching.text_tokens(tokenizer, "abc")[:3]


def test_the_fields_lie_where_the_library_has_them(tokenizer: Tokenizer) -> None:
    tree = TokenTree(tokenizer, tokens=TOKENS, ends=[0])
    init = matching._MatcherInit()
    matching._library().llg_constraint_init_set_defaults(byref(init), tree.handle)
    assert init.tokenizer == tree.handle
    known = LLParserLimits()
    for field, _ in matching._ParserLimits._fields_:
        assert getattr(init.limits, field) == getattr(known, field), field
    assert Limits() == Limits(known.max_lexer_states, known.step_lexer_fuel)


def test_what_is_wrong_is_told(tokenizer: Tokenizer) -> None:
    tree = TokenTree(tokenizer, tokens=TOKENS, ends=[0])
    assert "no_such" in Matcher(tree, "start: no_such", Limits()).problem()
    matcher = Matcher(tree, GRAMMARS["expression"], Limits())
    assert not matcher.consume([TOKENS - 1])
    assert matcher.is_stopped()
    assert matcher.problem()
    assert ours(matcher) == []


def test_a_tokenizer_without_bytes_is_refused() -> None:
    wordpiece = Tokenizer(models.WordPiece({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    wordpiece.decoder = decoders.WordPiece()
    with pytest.raises(ValueError, match="decoder"):
        TokenTree(wordpiece, tokens=TOKENS, ends=[0])


def test_an_end_that_is_no_token_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="out of range"):
        TokenTree(tokenizer, tokens=TOKENS, ends=[0, 10 * TOKENS])


def test_a_matcher_outlives_its_tree(tokenizer: Tokenizer) -> None:
    matcher = Matcher(
        TokenTree(tokenizer, tokens=TOKENS, ends=[0]), GRAMMARS["expression"], Limits()
    )
    gc.collect()
    assert ours(matcher)
