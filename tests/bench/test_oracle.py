"""The bound that the benchmark of experts is held against."""

import numpy as np
import pytest

from bench.inference.oracle import share_there


def test_who_knows_what_comes_keeps_what_comes_first() -> None:
    asked = [np.array([one]) for one in (0, 1, 2, 0, 1, 2, 0, 1, 2)]
    # 0, 1, 2 are read; then one of two is always there, and the last round has what it can.
    assert share_there(asked, 3, skipped=3) == 1.0
    assert share_there(asked, 2, skipped=0) == pytest.approx(1 - 6 / 9)


def test_what_a_step_uses_is_there_together() -> None:
    asked = [np.array([0, 1]), np.array([2, 3]), np.array([0, 1])]
    assert share_there(asked, 2, skipped=0) == 0.0
    assert share_there(asked, 4, skipped=2) == 1.0
