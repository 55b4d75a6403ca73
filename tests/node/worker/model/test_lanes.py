"""Work on prompts: long ones hold no short ones up, and what was given up is not done."""

import asyncio
import threading

from sllm.node.worker.model.lanes import SHORT_BYTES, Lanes
from tests.support import assert_eventually

LONG_BYTES = SHORT_BYTES + 1


class Held:
    """Work that goes on until it is told to end."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self._end = threading.Event()

    def __call__(self) -> str:
        self.begun.set()
        self._end.wait(20.0)
        return "long"

    def end(self) -> None:
        self._end.set()


async def test_a_short_prompt_does_not_wait_for_a_long_one() -> None:
    lanes, held = Lanes(), Held()
    long = asyncio.create_task(lanes.run(LONG_BYTES, held))
    await assert_eventually(held.begun.is_set)
    assert await lanes.run(SHORT_BYTES, str.upper, "short") == "SHORT"
    assert not long.done()
    held.end()
    assert await long == "long"
    lanes.close()


async def test_what_is_given_up_before_its_turn_is_not_done() -> None:
    lanes, held = Lanes(), Held()
    done: list[str] = []
    first = asyncio.create_task(lanes.run(LONG_BYTES, held))
    await assert_eventually(held.begun.is_set)
    second = asyncio.create_task(lanes.run(LONG_BYTES, done.append, "second"))
    third = asyncio.create_task(lanes.run(LONG_BYTES, done.append, "third"))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.wait([second])
    held.end()
    await asyncio.gather(first, third)
    assert done == ["third"]
    lanes.close()


async def test_whoever_leaves_waits_for_nothing() -> None:
    lanes, held = Lanes(), Held()
    leaving = asyncio.create_task(lanes.run(LONG_BYTES, held))
    await assert_eventually(held.begun.is_set)
    leaving.cancel()
    await asyncio.wait([leaving])
    assert leaving.cancelled()
    held.end()
    lanes.close()
