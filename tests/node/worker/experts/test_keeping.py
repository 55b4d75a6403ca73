"""Which experts are worth their memory."""

import numpy as np

from sllm.node.worker.experts.keeping import ByUse

ALL = np.arange(4)


def one(*experts: int) -> "np.ndarray[tuple[int, int], np.dtype[np.intp]]":
    return np.array([experts], np.intp)


def test_what_is_used_most_is_worth_most_though_it_was_used_before() -> None:
    keeping = ByUse([4])
    for turn in range(600):
        keeping.used(0, one(0) if turn % 3 else one(1))
    keeping.used(0, one(2))
    worth = keeping.worth(ALL)
    assert worth[0] > worth[1] > worth[2] > worth[3]


def test_a_long_prompt_weighs_by_its_tokens() -> None:
    """One of its tokens says little, though its experts were used as late as all others."""
    keeping = ByUse([4])
    for _ in range(200):
        keeping.used(0, one(0))
    keeping.used(0, np.array([[1]] + [[0]] * 199))
    worth = keeping.worth(ALL)
    assert worth[1] < 0.02 < 0.9 < worth[0]


def test_requests_under_way_count_at_once() -> None:
    keeping = ByUse([4])
    for _ in range(2000):
        keeping.used(0, one(0))
    for _ in range(64):
        keeping.used(0, one(3))
    assert keeping.worth(ALL)[3] > 0.8
