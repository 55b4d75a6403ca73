"""Steps that are broken off, whichever the engine: nobody who comes waits for others' layers."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import nn


class BrokenOff(BaseException):
    """Leaves a step. It is no error, of which a library would make a report, or an end."""


class Lookout:
    """Looks between the layers of a model whether its step is to be left. In the engine's thread.

    Of two steps in a row of those that nobody waits for one at most is left, whatever others have
    in between: so they get on, however many come.
    """

    def __init__(self, has_come: Callable[[], bool]) -> None:
        """`has_come` tells whether somebody waits whom the step under way holds up."""
        self.count = 0
        """Steps that were left."""
        self._has_come = has_come
        self._may_be_left = False
        self._was_left = False
        self._handles: list[Any] = []

    def attach(self, model: nn.Module) -> None:
        """Looks from now on."""
        self._handles = [layer.register_forward_pre_hook(self._look) for layer in _layers(model)]

    def detach(self) -> None:
        """Leaves the model as it was."""
        for handle in self._handles:
            handle.remove()

    def begin(self, background: Iterable[bool]) -> None:
        """A step begins; of each request in it, whether nobody waits for it."""
        kinds = frozenset(background)
        self._may_be_left = kinds == {True} and not self._was_left
        if True in kinds:
            self._was_left = False

    def _look(self, *_: Any) -> None:
        if self._may_be_left and self._has_come():
            self._may_be_left, self._was_left = False, True
            self.count += 1
            raise BrokenOff


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """The layers of a model: the members of its outermost lists."""
    for child in module.children():
        yield from child if isinstance(child, nn.ModuleList) else _layers(child)
