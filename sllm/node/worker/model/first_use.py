"""Sees in which order a model uses its weights when it first runs."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from mmap import PAGESIZE
from pathlib import Path
from typing import Any, Final

import torch

from sllm.checkpoint.format.manifest import TensorEntry
from sllm.node.worker.model.mapping import Mapping
from sllm.node.worker.model.parts import Part, Parts

_PAGEMAP: Final = Path("/proc/self/pagemap")
_ENTRY_BYTES: Final = 8
"""Of a page, in that file; the highest bit says that this process has the page. See proc(5)."""


@dataclass(frozen=True, slots=True)
class FirstUse:
    """In which order tensors are used."""

    tensors: tuple[int, ...]
    """Each once, by its index among those of the checkpoint."""
    at_once: int
    """So many of them, the first ones, are read by whatever does not wait."""


class FirstUses:
    """Watches one model from its making to the end of its first pass.

    Made, and told that it `begins`, in one thread; the rest belongs to the engine's.
    """

    def __init__(self, mapping: Mapping, tensors: Sequence[TensorEntry], parts: Parts) -> None:
        """Stands before each part.

        Args:
            mapping: of all weights; what was read of it so far was read by the model's making.
            tensors: of the checkpoint.
            parts: of the model.
        """
        self._mapping = mapping
        self._spans = _Spans(tensors, mapping)
        self._parts = parts
        self._at_once: list[int] = []
        self._is_known = True
        """Whether the kernel tells what was read before the model runs. If not, all may have."""
        self._used: list[int] = []
        self._found: FirstUse | None = None
        self._handles = [_watch(part, self._enter) for part in parts.parts]
        self._handles.append(parts.whole.register_forward_hook(self._end))

    def begin(self) -> None:
        """Tells that whatever has been read by now is read before the model runs."""
        waiting = {index for part in self._parts.parts for index in self._of(part)}
        alone = (index for index in range(self._spans.count) if index not in waiting)
        resident = _resident(self._mapping)
        self._is_known = resident is not None
        self._at_once = [*self._spans.within(resident or ()), *alone]

    def take(self) -> FirstUse | None:
        """What was found, once. None: the first pass has not ended, or it was taken."""
        found, self._found = self._found, None
        return found

    def _of(self, part: Part) -> list[int]:
        return self._spans.within(part.spans)

    def _enter(self, part: Part) -> None:
        self._used += self._of(part)

    def _end(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        first = list(dict.fromkeys(self._at_once))
        # What no part of this pass has used comes last.
        order = dict.fromkeys([*first, *self._used, *range(self._spans.count)])
        self._found = FirstUse(tuple(order), len(first) if self._is_known else len(order))


class _Spans:
    """Where tensors lie, in the order of their addresses."""

    def __init__(self, tensors: Sequence[TensorEntry], mapping: Mapping) -> None:
        self.count = len(tensors)
        starts = [mapping.address + mapping.starts[one.partition] + one.offset for one in tensors]
        self._order = sorted(range(self.count), key=lambda index: starts[index])
        self._starts = [starts[index] for index in self._order]
        self._ends = [starts[index] + tensors[index].size for index in self._order]

    def within(self, spans: Iterable[tuple[int, int]]) -> list[int]:
        """Indices of tensors that have bytes within spans of addresses, span by span."""
        return [
            self._order[place]
            for begin, end in spans
            for place in range(self._first(begin), bisect_left(self._starts, end))
            if self._ends[place] > begin
        ]

    def _first(self, begin: int) -> int:
        """The first tensor that could reach beyond an address: tied ones begin at the same."""
        place = bisect_right(self._starts, begin) - 1
        return bisect_left(self._starts, self._starts[place]) if place >= 0 else 0


def _watch(part: Part, enter: Any) -> Any:
    def before(*_: object) -> None:
        handle.remove()
        enter(part)

    handle = part.module.register_forward_pre_hook(before)
    return handle


def _resident(mapping: Mapping) -> list[tuple[int, int]] | None:
    """Addresses of pages that this process has read, or that came along with those.

    None: the kernel does not tell, as in some sandboxes.
    """
    first, count = mapping.address // PAGESIZE, -(-mapping.size_bytes // PAGESIZE)
    try:
        with _PAGEMAP.open("rb") as file:
            file.seek(first * _ENTRY_BYTES)
            found = bytearray(file.read(count * _ENTRY_BYTES))
    except OSError:
        return None
    if len(found) != count * _ENTRY_BYTES:
        return None
    entries = torch.frombuffer(found, dtype=torch.int64)
    edges = torch.nn.functional.pad((entries < 0).to(torch.int8), (1, 1)).diff()
    begins, ends = ((edges == one).nonzero().flatten().tolist() for one in (1, -1))
    return [
        ((first + begin) * PAGESIZE, (first + end) * PAGESIZE)
        for begin, end in zip(begins, ends, strict=True)
    ]
