from collections.abc import Iterable, Sequence
from functools import partial
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sllm.node.worker.model.module import make_vocabulary
from sllm.node.worker.model.text import StopStrings, TextStream, Vocabulary

SPECIAL = ["<s>", "</s>"]
SENTENCES = [
    "Once upon a time, there was a café — “naïve” wörds.",
    "日本語のテキスト 你好世界 🙂🚀",
] * 5


def byte_level() -> Tokenizer:
    """As GPT-2, Llama 3 and Qwen have it: tokens of bytes, that may cut characters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, special_tokens=SPECIAL)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def byte_fallback() -> Tokenizer:
    """As Llama 2 has it: a space is stripped from the start, rare characters are byte tokens."""
    letters = "▁abcdefghij.,'"
    names = ["<unk>", *SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *letters, "▁a", "ab"]
    vocabulary = {name: index for index, name in enumerate(names)}
    merges = [("▁", "a"), ("a", "b")]
    model = models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)])
    return tokenizer


TOKENIZERS = {"byte-level": byte_level(), "byte-fallback": byte_fallback()}
VOCABULARIES = {
    name: make_vocabulary(PreTrainedTokenizerFast(tokenizer_object=tokenizer))
    for name, tokenizer in TOKENIZERS.items()
}
SINGLE_LETTERS = Vocabulary(
    decode=lambda tokens: "".join(map(chr, tokens)),
    byte_token_ids=frozenset(),
    special_tokens={},
)

names = pytest.mark.parametrize("name", TOKENIZERS)
token_ids = partial(st.lists, max_size=40)


def deltas(stream: TextStream, tokens: Iterable[int]) -> tuple[list[str], str | None]:
    """What the stream gives for the tokens, and the stop string that ends them."""
    given_out = []
    for token in tokens:
        delta = stream.push(token)
        given_out.append(delta.text)
        if delta.stop:
            return given_out, delta.stop
    last = stream.finish()
    return [*given_out, last.text], last.stop


def cut(text: str, stops: list[str]) -> str:
    """The text before the stop string that is complete first, done the long way."""
    for end in range(len(text) + 1):
        met = [stop for stop in stops if text[:end].endswith(stop)]
        if met:
            return text[: end - max(map(len, met))]
    return text


@names
@given(data=st.data())
def test_deltas_together_are_what_decoding_all_tokens_gives(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    tokens = data.draw(token_ids(st.integers(0, tokenizer.get_vocab_size() - 1)))
    parts, _ = deltas(TextStream(VOCABULARIES[name]), tokens)
    assert "".join(parts) == tokenizer.decode(tokens, skip_special_tokens=True)


@names
@given(text=st.text(max_size=30))
def test_no_delta_of_real_text_has_a_part_of_a_character(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    tokens = tokenizer.encode(text).ids
    parts, _ = deltas(TextStream(VOCABULARIES[name]), tokens)
    assert "".join(parts) == tokenizer.decode(tokens)
    assert "\ufffd" in text or not any("\ufffd" in part for part in parts)


@names
def test_text_comes_with_its_token_and_not_later(name: str) -> None:
    tokens = TOKENIZERS[name].encode("a bad cab").ids
    parts, _ = deltas(TextStream(VOCABULARIES[name]), tokens)
    assert all(parts[:-1])
    assert parts[-1] == ""


def test_a_character_of_several_tokens_comes_with_its_last() -> None:
    tokens = TOKENIZERS["byte-level"].encode("a\N{FIRE}b").ids
    parts, _ = deltas(TextStream(VOCABULARIES["byte-level"]), tokens)
    assert len(tokens) > 3, "the character is meant to be several tokens"
    assert [part for part in parts if part] == ["a", "\N{FIRE}", "b"]


@given(
    text=st.text("abc", max_size=20),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=4),
    data=st.data(),
)
def test_the_text_ends_before_the_first_stop_string_however_it_comes(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    places = sorted(data.draw(st.sets(st.integers(0, len(text)))))
    pieces = [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]
    stream, given_out, met = StopStrings(stops), "", None
    for piece in pieces:
        grown, met = stream.push(piece)
        given_out += grown
        if met:
            break
    given_out += "" if met else stream.flush()
    assert given_out == cut(text, stops)
    assert bool(met) == any(stop in text for stop in stops)


def test_text_is_held_back_only_while_it_may_become_a_stop_string() -> None:
    stream = TextStream(SINGLE_LETTERS, ["END"])
    given_out = [stream.push(ord(letter)).text for letter in "aENEb"]
    assert given_out == ["a", "", "", "EN", "Eb"]


def test_a_stop_string_is_met_across_tokens_and_named() -> None:
    parts, stop = deltas(TextStream(SINGLE_LETTERS, ["xyz", "END"]), map(ord, "weENDmore"))
    assert "".join(parts) == "we"
    assert stop == "END"


def test_a_stop_string_may_be_met_by_what_was_held_back() -> None:
    vocabulary = VOCABULARIES["byte-level"]
    tokens = TOKENIZERS["byte-level"].encode("ab\N{FIRE}").ids[:-1]  # ends within a character
    parts, stop = deltas(TextStream(vocabulary, ["\ufffd"]), tokens)
    assert "".join(parts) == "ab"
    assert stop == "\ufffd"


@given(
    pieces=st.lists(st.one_of(st.text("ab<", max_size=3), st.sampled_from(["<a>", "<b>"]))),
    stops=st.lists(
        st.sampled_from(["<a>", "a<a>", "<a><b>", "b<b>a", "ab", "a<", "<b>b"]), max_size=4
    ),
)
def test_a_stop_string_with_a_special_token_is_looked_for_in_the_text_with_them(
    pieces: list[str], stops: list[str]
) -> None:
    """Compared with one look at the whole, letter by letter."""
    special = ("<a>", "<b>")
    stream, given_out, met = StopStrings(stops, special), "", None
    for piece in pieces:
        grown, met = stream.push(
            "" if piece in special else piece, piece if piece in special else ""
        )
        given_out += grown
        if met:
            break
    given_out += "" if met else stream.flush()
    assert (given_out, bool(met)) == cut_whole(pieces, stops, special)


def cut_whole(pieces: list[str], stops: list[str], special: tuple[str, ...]) -> tuple[str, bool]:
    whole = [(letter, piece not in special) for piece in pieces for letter in piece]
    ends = list(accumulate(map(len, pieces)))
    for end in ends:
        spans = []
        marked = "".join(letter for letter, _ in whole[:end])
        places = [place for place, (_, shown) in enumerate(whole[:end]) if shown]
        text = "".join(marked[place] for place in places)
        for stop in stops:
            if any(one in stop for one in special):
                if (at := marked.find(stop)) >= 0:
                    spans.append((at + len(stop), at))
            elif (at := text.find(stop)) >= 0:
                spans.append((places[at + len(stop) - 1] + 1, places[at]))
        if spans:
            _, start = min(spans)
            return "".join(letter for letter, shown in whole[:start] if shown), True
    return "".join(letter for letter, shown in whole if shown), False


def test_a_special_token_is_met_as_a_stop_string() -> None:
    vocabulary = Vocabulary(
        decode=lambda tokens: "".join(chr(token) for token in tokens if token),
        byte_token_ids=frozenset(),
        special_tokens={0: "<|end|>"},
    )
    parts, stop = deltas(TextStream(vocabulary, ["<|end|>"]), [*map(ord, "so"), 0, ord("x")])
    assert ("".join(parts), stop) == ("so", "<|end|>")
    parts, stop = deltas(TextStream(vocabulary, ["o<|end|>x"]), [*map(ord, "so"), 0, ord("x")])
    assert ("".join(parts), stop) == ("s", "o<|end|>x")
    parts, stop = deltas(TextStream(vocabulary, ["ox"]), [*map(ord, "so"), 0, ord("x")])
    assert ("".join(parts), stop) == ("s", "ox")


WITH_END = Vocabulary(
    decode=lambda tokens: "".join(chr(token) for token in tokens if token),
    byte_token_ids=frozenset(),
    special_tokens={0: "<|end|>"},
)
SO_END_X = [*map(ord, "so"), 0, ord("x")]


@pytest.mark.parametrize(
    ("stop", "text"), [("o<|end|>x", "so<|end|>x"), ("ox", "so<|end|>x"), ("x", "so<|end|>x")]
)
def test_special_tokens_are_part_of_the_text_where_they_are_wanted(stop: str, text: str) -> None:
    shown = TextStream(WITH_END, skip_special_tokens=False)
    assert "".join(deltas(shown, SO_END_X)[0]) == text
    stream = TextStream(WITH_END, [stop], skip_special_tokens=False)
    parts, met = deltas(stream, SO_END_X)
    assert met == (stop if stop in text else None)
    assert "".join(parts) == (text[: text.index(stop)] if met else text)


@names
def test_a_text_with_special_tokens_is_cut_where_they_stand(name: str) -> None:
    """Characters that they cut in two are as unreadable as at an end; nothing is said twice."""
    vocabulary = VOCABULARIES[name]
    tokens = TOKENIZERS[name].encode("na\u00efve \U0001f642").ids
    special = {max(tokens) + 1: "<|x|>"}
    mixed = Vocabulary(vocabulary.decode, vocabulary.byte_token_ids, special)
    for place in range(len(tokens) + 1):
        parts, _ = deltas(
            TextStream(mixed, skip_special_tokens=False),
            [*tokens[:place], max(special), *tokens[place:]],
        )
        before, _, after = "".join(parts).partition("<|x|>")
        assert before == vocabulary.decode(tokens[:place])
        assert after.strip("\ufffd") in vocabulary.decode(tokens) + vocabulary.decode(
            tokens[place:]
        )


@pytest.mark.parametrize(
    ("stop", "text"), [("nd", "so end"), ("o<|end|>", "so end"), ("never", "so ends")]
)
def test_a_stop_string_is_part_of_the_text_where_it_is_wanted(stop: str, text: str) -> None:
    tokens = [*map(ord, "so"), *([0] if "<" in stop else []), *map(ord, " ends")]
    parts, met = deltas(TextStream(WITH_END, [stop], include_stop=True), tokens)
    if "<" in stop:
        text = "so"  # the special token itself is not shown
    assert "".join(parts) == text
    assert met == (None if stop == "never" else stop)


def test_special_tokens_without_end_cost_nothing() -> None:
    decoded: list[int] = []

    def decode(tokens: Sequence[int]) -> str:
        decoded.append(len(tokens))
        return "x" * len(tokens)

    vocabulary = Vocabulary(decode, frozenset(), special_tokens={0: "<s>"})
    parts, _ = deltas(TextStream(vocabulary), [1, *[0] * 1000, 1])
    assert "".join(parts) == "xx"
    assert max(decoded) <= 2
