"""The store off the event loop: what it holds and what is in force stay the same."""

import asyncio
import threading
from pathlib import Path

import pytest

from sllm import errors
from sllm.control.state.durable import Durable
from sllm.control.state.sqlite import SqliteStore
from sllm.control.types.calls import Answer, Call
from tests.control.shapes import call, deployment
from tests.support import assert_eventually

CALL = call("r")


class SlowStore(SqliteStore):
    """A store whose disk takes as long as it is told to."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.asked = threading.Event()
        self.goes_on = threading.Event()

    def remember(self, call: Call[Answer], answer: Answer, now: float) -> Answer:
        self.asked.set()
        self.goes_on.wait(20.0)
        return super().remember(call, answer, now)


async def test_what_is_stored_comes_into_force_although_its_caller_has_left(tmp_path: Path) -> None:
    store = SlowStore(tmp_path / "state.db")
    durable = Durable(store)
    in_force: list[bytes] = []
    reached: list[str] = []

    async def change() -> None:
        in_force.append(await durable.run(store.remember, CALL, b"answer", 1.0))
        await asyncio.sleep(0)
        reached.append("the answer to a caller who has left")

    changing = asyncio.create_task(change())
    await assert_eventually(store.asked.is_set)
    for _ in range(2):  # a call may be cancelled more than once
        changing.cancel()
        await asyncio.sleep(0)
    store.goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await changing
    assert await durable.recall(CALL) == b"answer"
    assert in_force == [b"answer"]
    assert reached == []
    await durable.close()


async def test_a_deadline_is_told_once_the_store_has_answered(tmp_path: Path) -> None:
    store = SlowStore(tmp_path / "state.db")
    durable = Durable(store)

    async def change() -> None:
        async with asyncio.timeout(0.01):
            await durable.run(store.remember, CALL, b"answer", 1.0)
            await asyncio.sleep(20.0)

    asyncio.get_running_loop().call_later(0.05, store.goes_on.set)
    with pytest.raises(TimeoutError):
        await change()
    await durable.close()


async def test_what_the_store_refuses_is_raised(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "state.db")
    durable = Durable(store)
    await durable.run(store.put, deployment(), CALL, b"answer", 1.0)
    with pytest.raises(errors.RequestIdInUse):
        await durable.recall(call("r", "other content"))
    await durable.close()
