"""A generation that is cut anywhere and goes on elsewhere ends as if it had never been cut."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sllm.node.worker.engine.interface import FinishReason, NewToken, TokenLogprob
from sllm.node.worker.generation import Completed, Generation, GenerationRequest, Tokens
from sllm.node.worker.model.prompts import TextPrompt
from sllm.sampling import Sampling
from tests.node.worker.model.test_text import TOKENIZERS, VOCABULARIES, names

PROMPT_TOKENS = 3
TEXTS = ("naïve café — 日本語 🙂🚀 and so on", "END of it: EN, and the END", "🙂🙂🙂🙂")
STOPS: tuple[tuple[str, ...], ...] = ((), ("never",), ("END",), ("🙂🚀 and",), ("語",), ("\ufffd",))


def request(stop: tuple[str, ...] = (), generated: tuple[int, ...] = ()) -> GenerationRequest:
    return GenerationRequest(
        request_id="r",
        prompt=TextPrompt("x"),
        sampling=Sampling(),
        stop=stop,
        stop_token_ids=frozenset(),
        max_tokens=None,
        ignore_eos=False,
        logprobs=0,
        generated=generated,
    )


def run(name: str, asked: GenerationRequest, tokens: tuple[int, ...]) -> list[Tokens | Completed]:
    """All events of a generation whose engine draws `tokens`, after those drawn before."""
    begun = Generation(asked, PROMPT_TOKENS, VOCABULARIES[name], taken_at=0.0)
    finish = None if tokens else FinishReason.LENGTH
    if ended := begun.ended(finish):
        return [ended]
    events: list[Tokens | Completed] = []
    for place, token in enumerate(tokens, 1):
        finish = FinishReason.LENGTH if place == len(tokens) else None
        drawn = NewToken("k", token, TokenLogprob(-float(token), ()), finish, 1)
        events.append(begun.push(drawn))
        if isinstance(events[-1], Completed):
            break
    return events


def whole(events: list[Tokens | Completed]) -> tuple[Tokens, Completed]:
    """All tokens as one, and the end without them."""
    parts = [event.tokens if isinstance(event, Completed) else event for event in events]
    joined = parts[0]
    for part in parts[1:]:
        assert part.first_index == joined.first_index + len(joined.token_ids)
        joined = joined.joined(part)
    end = events[-1]
    assert isinstance(end, Completed)
    return joined, replace(end, tokens=Tokens(0, (), "", ()), first_token_seconds=0.0)


def assert_goes_on(name: str, tokens: tuple[int, ...], stop: tuple[str, ...]) -> None:
    """Cuts at every token: before the first, and after the last, when only the end is missing."""
    uncut = run(name, request(stop), tokens)
    expected, end = whole(uncut)
    for cut in range(len(expected.token_ids) + 1):
        text = "".join(_text(event) for event in uncut[:cut])
        after, after_end = whole(run(name, request(stop, tokens[:cut]), tokens[cut:]))
        assert after.token_ids == expected.token_ids[cut:]
        assert text + after.text == expected.text, cut
        assert after.first_index == cut
        assert after.logprobs == expected.logprobs[cut:]
        assert replace(after_end, usage=end.usage) == end
        assert after_end.usage.completion_tokens == end.usage.completion_tokens


@pytest.mark.parametrize("include_stop", [False, True])
@names
def test_the_token_that_ends_it_is_part_of_the_text_only_where_it_is_wanted(
    name: str, include_stop: bool
) -> None:
    tokens = tuple(TOKENIZERS[name].encode("one two three").ids)
    asked = replace(request(), include_stop=include_stop)
    generation = Generation(asked, PROMPT_TOKENS, VOCABULARIES[name], taken_at=0.0)
    ends = [None] * (len(tokens) - 1) + [FinishReason.STOP]
    events = [
        generation.push(NewToken("k", token, None, finish, 1))
        for token, finish in zip(tokens, ends, strict=True)
    ]
    shown = tokens if include_stop else tokens[:-1]
    assert "".join(map(_text, events)) == VOCABULARIES[name].decode(shown)
    assert isinstance(events[-1], Completed)
    assert events[-1].usage.completion_tokens == len(tokens)


@names
def test_a_stop_token_is_no_stop_string_where_it_is_told_again(name: str) -> None:
    tokens = tuple(TOKENIZERS[name].encode("so END").ids)
    ends = frozenset(tokens[-1:])
    word = VOCABULARIES[name].decode(tokens[-1:])
    asked = replace(request(stop=(word,), generated=tokens), stop_token_ids=ends)
    ended = Generation(asked, PROMPT_TOKENS, VOCABULARIES[name], 0.0).ended(FinishReason.STOP)
    assert ended
    assert ended.stop is None


def _text(event: Tokens | Completed) -> str:
    return event.tokens.text if isinstance(event, Completed) else event.text


@names
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("stop", STOPS)
def test_it_goes_on_after_any_token(name: str, text: str, stop: tuple[str, ...]) -> None:
    assert_goes_on(name, tuple(TOKENIZERS[name].encode(text).ids), stop)


@names
@given(data=st.data())
def test_it_goes_on_within_anything(name: str, data: st.DataObject) -> None:
    vocabulary = TOKENIZERS[name].get_vocab_size()
    tokens = data.draw(st.lists(st.integers(0, vocabulary - 1), min_size=1, max_size=12))
    stop = data.draw(st.lists(st.text("ab \ufffd", min_size=1, max_size=3), max_size=2))
    assert_goes_on(name, tuple(tokens), tuple(stop))


def test_tokens_tell_how_long_the_engine_took_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """However they are joined, and whoever reads them when; the first one follows none."""
    clock = iter([10.0, 10.5, 12.0])
    now = SimpleNamespace(monotonic=lambda: next(clock))
    monkeypatch.setattr("sllm.node.worker.generation.time", now)
    first, *others = run("byte-level", request(), (65, 66, 67))
    assert isinstance(first, Tokens)
    assert first.seconds == 0.0
    joined, _ = whole([first, *others])
    assert joined.seconds == 2.0


def test_cached_prompt_tokens_are_of_the_prompt_alone() -> None:
    tokens = tuple(TOKENIZERS["byte-level"].encode("abc").ids)
    begun = Generation(
        request(generated=tokens[:1]), PROMPT_TOKENS, VOCABULARIES["byte-level"], taken_at=0.0
    )
    end = begun.push(NewToken("k", tokens[1], None, FinishReason.LENGTH, 64))
    assert isinstance(end, Completed)
    assert end.usage.cached_prompt_tokens == PROMPT_TOKENS
    assert end.usage.prompt_tokens == PROMPT_TOKENS
