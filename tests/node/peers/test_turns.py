"""Turns at giving chunks."""

import asyncio

import pytest

from sllm.node.peers import turns
from sllm.node.peers.turns import Turn
from tests.support import assert_eventually


async def signs(turn: Turn) -> int:
    """How many signs of life were given before it was its turn."""
    return len([sign async for sign in turn.wait()])


async def test_whoever_does_not_take_what_it_is_given_loses_its_turn_to_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(turns, "_TAKING_SECONDS", 0.01)
    all_turns = asyncio.Semaphore(1)
    slow, other = Turn(all_turns), Turn(all_turns)
    assert await signs(slow) == 0
    with slow.giving():  # it stays there: a caller that does not read
        await signs(other)
    other.release()
    assert await signs(slow) == 0, "it has another turn once it has taken it"
    slow.release()
    assert not all_turns.locked()


async def test_whoever_takes_what_it_is_given_keeps_its_turn() -> None:
    all_turns = asyncio.Semaphore(1)
    turn, other = Turn(all_turns), Turn(all_turns)
    await signs(turn)
    for _ in range(3):
        with turn.giving():
            pass
        assert await signs(turn) == 0
        assert all_turns.locked()
    waiting = asyncio.create_task(signs(other))
    turn.release()
    turn.release()
    assert await waiting == 0
    other.release()
    await assert_eventually(lambda: not all_turns.locked())
