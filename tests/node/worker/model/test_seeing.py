"""What is made of images is kept within bounds: requests wait for others to end, in turn."""

import asyncio
from collections.abc import Sequence

import pytest

from sllm.chat.images import Image
from sllm.errors import InvalidImage, NotServed
from sllm.node.worker.model.image_memory import ImageMemory
from sllm.node.worker.model.seeing import Seeing, SeenPrompt
from tests.support import assert_eventually


class Reader:
    """Makes as many bytes of an image as its file has; no more than 100 may be kept."""

    memory = ImageMemory(kept=100, request=60, reading=0, step=0)

    def __init__(self) -> None:
        self.read_so_far = 0

    def read(
        self, token_ids: Sequence[int], images: Sequence[Image], *, placed: bool
    ) -> SeenPrompt:
        """See `ImageReader.read`."""
        self.read_so_far += 1
        if images[0].data == b"bad":
            raise InvalidImage("bad")
        return SeenPrompt(tuple(token_ids), (), sum(len(one.data) for one in images))


class Asking:
    """Requests, by their names."""

    def __init__(self) -> None:
        self.reader = Reader()
        self.seeing = Seeing(self.reader)
        self.done: list[str] = []

    def ask(self, name: str, size: int) -> "asyncio.Task[None]":
        async def read() -> None:
            await self.seeing.read(name, (1,), [Image(bytes(size))], placed=False)
            self.done.append(name)

        return asyncio.create_task(read())

    async def until_done(self, *names: str) -> None:
        await assert_eventually(lambda: self.done == list(names))

    async def until_read(self, count: int) -> None:
        await assert_eventually(lambda: self.reader.read_so_far == count)


async def test_what_has_no_room_waits_and_keeps_its_turn() -> None:
    asking = Asking()
    tasks = [asking.ask("a", 60), asking.ask("b", 60), asking.ask("c", 10)]
    await asking.until_done("a")
    await asking.until_read(2)  # the second is there, and those behind it are not read yet
    asking.seeing.let_go("nobody")
    asking.seeing.let_go("a")
    await asking.until_done("a", "b", "c")
    await asyncio.gather(*tasks)
    asking.seeing.close()


async def test_one_that_is_cancelled_while_it_waits_holds_up_nobody() -> None:
    asking = Asking()
    first = asking.ask("a", 60)
    await asking.until_done("a")
    second, third = asking.ask("b", 60), asking.ask("c", 40)
    await asking.until_read(2)
    second.cancel()
    await asking.until_done("a", "c")
    asking.seeing.let_go("b")
    await asyncio.gather(first, third)
    asking.seeing.close()


async def test_one_that_is_larger_than_all_is_taken_alone() -> None:
    asking = Asking()
    tasks = [asking.ask("a", 10), asking.ask("b", 200)]
    await asking.until_read(2)
    assert asking.done == ["a"]
    asking.seeing.let_go("a")
    await asking.until_done("a", "b")
    await asyncio.gather(*tasks)
    asking.seeing.close()


async def test_one_that_fails_takes_no_room() -> None:
    asking = Asking()
    for _ in range(3):
        with pytest.raises(InvalidImage):
            await asking.seeing.read("a", (1,), [Image(b"bad")], placed=False)
    await asking.ask("b", 100)
    asking.seeing.close()


async def test_without_a_reader_texts_alone_are_taken() -> None:
    seeing = Seeing(None)
    assert (await seeing.read("a", (1, 2), (), placed=False)).token_ids == (1, 2)
    with pytest.raises(NotServed):
        await seeing.read("a", (1,), [Image(b"x")], placed=False)
    seeing.close()
