"""Low-rank adapters in a batch: what each adds to its own rows of what layers give.

Of the rows of a step, which lie one after the other, each request has its own. Where a layer has
computed `y = x Wᵀ` for all of them, the rows of a request with an adapter get `scale · (x Aᵀ) Bᵀ`
on top. So requests with different adapters, and with none, share every step, and an adapter is used
where its weights lie: to have one more takes no memory of an engine's, and no pause.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, SupportsIndex, overload

import torch
from torch.nn.functional import linear


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """What an adapter adds to one layer."""

    a: torch.Tensor
    """[rank, input]."""
    b: torch.Tensor
    """[output, rank]."""
    scale: float
    """By which the product is multiplied."""

    def add(self, rows: torch.Tensor, given: torch.Tensor) -> None:
        """Adds to what the layer has given, in place.

        Args:
            rows: what went into the layer, [rows, input].
            given: what came out of it, [rows, output].
        """
        narrow = linear(rows.to(self.a.dtype), self.a)
        if given.dtype == narrow.dtype == self.b.dtype:
            given.addmm_(narrow, self.b.T, alpha=self.scale)
        else:
            given.add_(linear(narrow, self.b.to(narrow.dtype)).to(given.dtype), alpha=self.scale)


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Adapter:
    """An adapter whose weights lie in this process. Who holds it holds its memory."""

    name: str
    """The same for the same weights, whenever they are loaded."""
    layers: Mapping[str, LowRank]
    """By the names that the layers have in transformers' model."""


@dataclass(frozen=True, slots=True)
class Span:
    """Neighbouring rows of a step that have the same adapter."""

    begin: int
    end: int
    """One past the last."""
    adapter: Adapter


@dataclass(frozen=True, slots=True)
class Part:
    """What a layer of transformers' model is within a module of an engine's."""

    name: str
    """The layer's."""
    inputs: int
    begin: int
    """Of what the module gives, its first column."""
    end: int


@dataclass(frozen=True, slots=True)
class AdaptedModule:
    """A module of an engine that adapters may add to: one layer, or several side by side."""

    module: Any
    parts: tuple[Part, ...]


class AdapterHooks:
    """Stands behind the modules of a model. Belongs to the engine's thread once it is attached."""

    def __init__(self) -> None:
        self.layers: Mapping[str, tuple[int, int]] = {}
        """Inputs and outputs of the layers that adapters may add to. Empty: it is not attached."""
        self._spans: Sequence[Span] = ()
        self._handles: list[Any] = []

    def attach(self, model: Any, modules: Iterable[AdaptedModule]) -> None:
        """Adds to what these modules of a model give, from now on."""
        layers: dict[str, tuple[int, int]] = {}
        for one in modules:
            layers |= {part.name: (part.inputs, part.end - part.begin) for part in one.parts}
            behind = partial(self._behind, one.parts)
            self._handles.append(one.module.register_forward_hook(behind, with_kwargs=True))
        self._handles.append(model.register_forward_hook(self._done))
        self.layers = layers

    def detach(self) -> None:
        """Leaves the model as it was."""
        for handle in self._handles:
            handle.remove()

    def expect(self, spans: Iterable[Span]) -> None:
        """Says whose rows the next pass has; rows of no adapter are left out."""
        self._spans = joined(spans)

    def _behind(
        self, parts: Sequence[Part], _: Any, args: Any, kwargs: dict[str, Any], output: Any
    ) -> None:
        if not self._spans:
            return
        rows = _rows(args[0] if args else next(iter(kwargs.values())))
        given = _rows(output[0] if isinstance(output, tuple) else output)
        for span in self._spans:
            for part in parts:
                if added := span.adapter.layers.get(part.name):
                    place = given[span.begin : span.end, part.begin : part.end]
                    added.add(rows[span.begin : span.end], place)

    def _done(self, *_: Any) -> None:
        self._spans = ()  # nothing of an adapter is held between steps


def joined(spans: Iterable[Span]) -> Sequence[Span]:
    """The same with neighbours of one adapter in one piece."""
    found: list[Span] = []
    for span in spans:
        if found and found[-1].adapter is span.adapter and found[-1].end == span.begin:
            found[-1] = Span(found[-1].begin, span.end, span.adapter)
        else:
            found.append(span)
    return found


def _rows(packed: torch.Tensor) -> torch.Tensor:
    """[rows, size], of the same memory; transformers packs them as a batch of one."""
    return packed[0] if packed.dim() == 3 else packed


class MarkedTokens(list[int]):
    """Tokens of a request with an adapter, for caches that tell pages by the tokens in them.

    Keys and values depend on the adapter as well: the first page, which all others follow, has a
    mark that is no token.
    """

    def __init__(self, tokens: Iterable[int], mark: int) -> None:
        """`mark`: below 0, another one for each adapter."""
        super().__init__(tokens)
        self._mark = mark

    @overload
    def __getitem__(self, key: SupportsIndex) -> int: ...
    @overload
    def __getitem__(self, key: slice) -> list[int]: ...
    def __getitem__(self, key: SupportsIndex | slice) -> int | list[int]:
        """The tokens of a page, and the mark if it is the first."""
        if not isinstance(key, slice):
            return super().__getitem__(key)
        found = super().__getitem__(key)
        return found if key.start else [*found, self._mark]


class Marks:
    """Marks of adapters. One that is loaded again has the mark that it had."""

    def __init__(self) -> None:
        self._by_name: dict[str, int] = {}

    def of(self, adapter: Adapter) -> int:
        """The mark of an adapter."""
        if adapter.name not in self._by_name:
            self._by_name[adapter.name] = -1 - len(self._by_name)
        return self._by_name[adapter.name]


def linear_modules(model: Any, is_linear: Callable[[Any], bool]) -> list[tuple[str, Any]]:
    """The linear layers of a model by their names, but for those that give logits."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    return [
        (name, module)
        for name, module in model.named_modules()
        if is_linear(module) and module is not head
    ]
