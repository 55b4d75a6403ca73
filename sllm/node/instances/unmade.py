"""What was not made ready for its engine lately, and why, for whoever wonders where it is."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Final, NamedTuple

_KEPT: Final = 64
_LETTERS: Final = 300
"""Of a problem, which is reported with the node."""


class Unmade(NamedTuple):
    """Weights that were to be made ready."""

    digest: str
    """Of the checkpoint as it is published."""
    made_for: str
    """See `WeightForm.label`."""


class Problems:
    """Remembers the last ones."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Unmade, str] = OrderedDict()

    @property
    def kept(self) -> Mapping[Unmade, str]:
        """Each with its reason, in words."""
        return self._kept

    def note(self, what: Unmade, problem: str) -> None:
        """Remembers why something was not made."""
        self._kept[what] = problem[:_LETTERS]
        self._kept.move_to_end(what)
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)

    def clear(self, what: Unmade) -> None:
        """It is there now, or nobody wants it any more."""
        self._kept.pop(what, None)
