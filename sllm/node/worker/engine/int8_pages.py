"""Pages kept with eight bits for each number: half as large as those of 16 bits, and not exact.

Numbers that lie side by side share a scale, by which the largest of them is 127. What comes back
differs from what left by half a 127th of that at most.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sllm.node.worker.engine.pages import EnginePages, PageLayout, Prefix
from sllm.node.worker.messages import INT8_PAGES

GROUP: Final = 64
"""Numbers of a scale: those of one token and one head, or of half of that."""
_TOGETHER: Final = 32
"""Pages that are in memory as the engine has them, at a time."""
_ITEM_BYTES: Final = {"float32": 4, "float16": 2, "bfloat16": 2}

Floats = npt.NDArray[np.float32]


class Int8Pages:
    """See `EnginePages`: those of an engine, as they are kept."""

    def __init__(self, pages: EnginePages) -> None:
        """`pages`: whose layout `takes` says it may be so."""
        self._pages = pages
        self._dtype = pages.layout.dtype
        numbers = pages.layout.size_bytes // _ITEM_BYTES[self._dtype]
        size = numbers // GROUP * (GROUP + np.dtype(np.float32).itemsize)
        self.layout = PageLayout(pages.layout.name + INT8_PAGES, pages.layout.tokens, size)

    @property
    def seconds_per_token(self) -> float | None:
        """See `EnginePages.seconds_per_token`."""
        return self._pages.seconds_per_token

    def subscribe(self, on_end: Callable[[Prefix], None]) -> None:
        """See `EnginePages.subscribe`."""
        self._pages.subscribe(on_end)

    def present(self, prefix: Prefix) -> int:
        """See `EnginePages.present`."""
        return self._pages.present(prefix)

    def let_go(self, holder: str) -> None:
        """See `EnginePages.let_go`."""
        self._pages.let_go(holder)

    def put(self, prefix: Prefix, first: int, pages: Sequence[memoryview], holder: str) -> int:
        """See `EnginePages.put`."""
        count = 0
        for few in _few(pages):
            whole = [memoryview(unpacked(page, self._dtype)) for page in few]
            came = self._pages.put(prefix, first + count, whole, holder)
            count += came
            if came < len(few):
                break
        return count

    def copy(self, prefix: Prefix, wanted: Sequence[int], into: Sequence[memoryview]) -> list[bool]:
        """See `EnginePages.copy`."""
        size, copied = self._pages.layout.size_bytes, list[bool]()
        for indices, targets in zip(_few(wanted), _few(into), strict=True):
            whole = [memoryview(bytearray(size)) for _ in indices]
            there = self._pages.copy(prefix, indices, whole)
            for page, target, is_there in zip(whole, targets, there, strict=True):
                if is_there:
                    target[:] = packed(page, self._dtype)
            copied += there
        return copied


def takes(layout: PageLayout) -> bool:
    """Whether pages are of numbers that may be kept so."""
    item = _ITEM_BYTES.get(layout.dtype)
    return item is not None and layout.size_bytes % (item * GROUP) == 0


def packed(page: memoryview, dtype: str) -> bytes:
    """The scales of a page's numbers, float32, and then the numbers, int8."""
    groups = _floats(page, dtype).reshape(-1, GROUP)
    scales: Floats = np.abs(groups).max(1, keepdims=True) / np.float32(127)
    scales[scales == 0] = 1
    kept: bytes = scales.tobytes() + np.rint(groups / scales).astype(np.int8).tobytes()
    return kept


def unpacked(page: memoryview, dtype: str) -> bytearray:
    """A page that was packed, as the engine has it."""
    count = len(page) // (GROUP + np.dtype(np.float32).itemsize)
    scales = np.frombuffer(page, np.float32, count)
    numbers = np.frombuffer(page, np.int8, offset=scales.nbytes).reshape(count, GROUP)
    return bytearray(_numbers(numbers * scales[:, None], dtype).tobytes())


def _floats(page: memoryview, dtype: str) -> Floats:
    if dtype == "bfloat16":  # the first half of a float32's bits
        return (np.frombuffer(page, np.uint16).astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(page, dtype).astype(np.float32)


def _numbers(floats: Floats, dtype: str) -> npt.NDArray[Any]:
    if dtype == "bfloat16":
        bits = floats.view(np.uint32)
        even = (bits >> 16) & 1  # to the nearest, and of two that are as near to the even one
        return ((bits + 0x7FFF + even) >> 16).astype(np.uint16)
    return floats.astype(dtype)


def _few(things: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for begin in range(0, len(things), _TOGETHER):
        yield things[begin : begin + _TOGETHER]
