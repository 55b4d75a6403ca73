"""Which of many pairs run always, and which at night alone."""

from collections.abc import Sequence
from typing import Any

import pytest


def paired(ones: Sequence[Any], others: Sequence[Any]) -> list[Any]:
    """Each of all pairs, as pytest takes it: those in turn always, and the rest at night.

    However many there are of either, each of them is in a pair that runs always.
    """
    by_day = {(turn % len(ones), turn % len(others)) for turn in range(max(len(ones), len(others)))}
    return [
        pytest.param(one, other, marks=() if (place, turn) in by_day else pytest.mark.nightly)
        for place, one in enumerate(ones)
        for turn, other in enumerate(others)
    ]
