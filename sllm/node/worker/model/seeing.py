"""Prompts with images: what a worker asks of an engine that shows its models some."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol

from sllm.chat.images import Image, check_sizes
from sllm.errors import NotServed
from sllm.node.worker.messages import ModelDescription
from sllm.node.worker.model.image_memory import ImageMemory


@dataclass(frozen=True, slots=True)
class SeenPrompt:
    """A prompt in which images have their places."""

    token_ids: tuple[int, ...]
    """With as many for each image as the model sees it as."""
    images: tuple[Any, ...] = ()
    """In the engine's own form, with their places."""
    nbytes: int = 0
    """Of what is kept of them as long as the request is under way."""


class ImageReader(Protocol):
    """Belongs to a model and its engine. Its calls take a while."""

    @property
    def memory(self) -> ImageMemory:
        """What images may take in this process."""
        ...

    def read(
        self, token_ids: Sequence[int], images: Sequence[Image], *, placed: bool
    ) -> SeenPrompt:
        """Decodes images, and finds or makes their places.

        Args:
            token_ids: of a prompt.
            images: in their order in it.
            placed: whether the tokens are those of a `SeenPrompt`; otherwise each image has one
                token, as the template wrote it.

        Raises:
            InvalidImage: One cannot be decoded.
            InvalidPrompt: There are more of them than places, or fewer.
        """
        ...


def with_images(model: ModelDescription, reader: ImageReader | None) -> ModelDescription:
    """A model's description with what images may take; `reader`: None where it sees none."""
    return replace(model, image_bytes=reader.memory.total) if reader else model


class Seeing:
    """Reads images in a thread of its own: one request after the other. On the event loop.

    What is made of them stays in memory as long as their requests are under way. So one for which
    there is no room waits for others to end, and those behind it wait with it.
    """

    def __init__(self, reader: ImageReader | None) -> None:
        """`reader`: None where the model sees none."""
        self._reader = reader
        self._most = reader.memory.kept if reader else 0
        self._thread = ThreadPoolExecutor(1, "images")
        self._turn = asyncio.Lock()
        self._left = asyncio.Event()
        self._kept: dict[str, int] = {}
        """Bytes of what was made of requests' images, by their ids in the engine."""

    async def read(
        self, key: str, token_ids: Sequence[int], images: Sequence[Image], *, placed: bool
    ) -> SeenPrompt:
        """See `ImageReader.read`. What is made of them counts until `let_go`.

        Args:
            key: the request's id in the engine.
            token_ids: see there.
            images: the same.
            placed: the same.

        Raises:
            NotServed: The model sees none.
        """
        if not images:
            return SeenPrompt(tuple(token_ids))
        if self._reader is None:
            raise NotServed("the instance's model takes text alone")
        check_sizes(images)

        def read(reader: ImageReader) -> SeenPrompt:
            return reader.read(token_ids, images, placed=placed)

        loop = asyncio.get_running_loop()
        async with self._turn:
            seen = await loop.run_in_executor(self._thread, read, self._reader)
            while self._kept and sum(self._kept.values()) + seen.nbytes > self._most:
                self._left.clear()
                await self._left.wait()
            self._kept[key] = seen.nbytes
            return seen

    def let_go(self, key: str) -> None:
        """A request has ended; it need not have had images."""
        if self._kept.pop(key, None) is not None:
            self._left.set()

    def close(self) -> None:
        """Reads none any more."""
        self._thread.shutdown(wait=False, cancel_futures=True)
