"""Answers that have to be calls, however their letters come."""

import json
from collections.abc import Iterator
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sllm.chat.conversation import ToolChoice, ToolChoiceMode
from sllm.node.worker.model.forced_calls import ForcedCalls
from sllm.node.worker.model.parsing import ToolCallDelta

REQUIRED = ToolChoice(ToolChoiceMode.REQUIRED)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
ARGUMENTS = st.dictionaries(st.text(), VALUES, max_size=4)
CALLS = st.lists(st.tuples(st.text(min_size=1), ARGUMENTS), min_size=1, max_size=4)
SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=8)


def pieces(text: str, sizes: list[int]) -> Iterator[str]:
    place = 0
    while place < len(text):
        size = sizes[place % len(sizes)]
        yield text[place : place + size]
        place += size


def taken_apart(choice: ToolChoice, text: str, sizes: list[int]) -> list[ToolCallDelta]:
    parser = ForcedCalls(choice, "request", skips_special_tokens=True)
    found = [parser.push(piece, 1, finished=False) for piece in pieces(text, sizes)]
    assert not any(one.text or one.reasoning for one in found)
    return [delta for one in found for delta in one.tool_calls]


def together(deltas: list[ToolCallDelta]) -> list[tuple[str, Any]]:
    """Names and arguments of whole calls, each of which begins with its name and its id."""
    calls: list[tuple[str, str]] = []
    for delta in deltas:
        assert bool(delta.name) == bool(delta.call_id)
        if delta.name:
            assert delta.index == len(calls)
            calls.append((delta.name, ""))
        name, arguments = calls[delta.index]
        calls[delta.index] = name, arguments + delta.arguments
    return [(name, json.loads(arguments)) for name, arguments in calls]


@given(CALLS, SIZES, st.booleans(), st.booleans())
def test_calls_are_found_in_any_pieces(
    calls: list[tuple[str, Any]], sizes: list[int], ascii_only: bool, blanks: bool
) -> None:
    written = [{"name": name, "parameters": arguments} for name, arguments in calls]
    text = json.dumps(written, ensure_ascii=ascii_only, separators=None if blanks else (",", ":"))
    deltas = taken_apart(REQUIRED, text, sizes)
    assert together(deltas) == calls
    assert len({delta.call_id for delta in deltas if delta.call_id}) == len(calls)


@given(ARGUMENTS, SIZES)
def test_a_named_call_is_all_of_the_answer(arguments: dict[str, Any], sizes: list[int]) -> None:
    deltas = taken_apart(ToolChoice(function="add"), json.dumps(arguments), sizes)
    assert together(deltas) == [("add", arguments)]


@given(CALLS, SIZES, st.integers(0, 200))
def test_what_is_cut_is_what_there_was(
    calls: list[tuple[str, Any]], sizes: list[int], at: int
) -> None:
    text = json.dumps([{"name": name, "parameters": arguments} for name, arguments in calls])
    whole, cut = (taken_apart(REQUIRED, one, sizes) for one in (text, text[:at]))
    given_out = "".join(delta.arguments for delta in whole)
    assert given_out.startswith("".join(delta.arguments for delta in cut))
