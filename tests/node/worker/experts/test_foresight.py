"""What the next layer will use, by its own router, and how far that is to be trusted."""

import numpy as np
import torch

from sllm.node.worker.experts.foresight import Foresight

ROUTER = torch.eye(4)
COUNTS = [4, 4]


def looked(foresight: Foresight, hidden: list[float], uses: list[int], times: int) -> None:
    """Sees tokens with this hidden state use these experts of the second layer."""
    for _ in range(times):
        foresight.next(0, torch.tensor([hidden]), 2)
        foresight.came(1, np.array([uses]))


def test_guesses_say_how_often_they_have_come_true() -> None:
    foresight = Foresight([None, ROUTER], COUNTS)
    state = [0.0, 3.0, 2.0, 1.0]
    assert foresight.next(0, torch.tensor([state]), 2) is None, "nothing was seen yet"
    looked(foresight, state, [1, 3], 2000)
    guess = foresight.next(0, torch.tensor([state]), 2)
    assert guess is not None
    assert guess.numbers.tolist() == [4 + 1], "what has never come true is not guessed"
    assert guess.shares[0] > 0.99


def test_several_tokens_make_a_guess_likelier() -> None:
    foresight = Foresight([None, ROUTER], COUNTS)
    for turn in range(2000):
        looked(foresight, [0.0, 3.0, 2.0, 1.0], [1, 2] if turn % 2 else [0, 3], 1)
    states = torch.tensor([[0.0, 3.0, 2.0, 1.0], [0.0, 3.0, 1.0, 2.0]])
    guess = foresight.next(0, states, 2)
    assert guess is not None
    assert guess.numbers[0] == 4 + 1
    assert guess.shares[0] > 0.7 > 0.6 > guess.shares[1]


def test_nobody_knows_what_follows_the_last_layer_or_a_router_that_is_not_known() -> None:
    foresight = Foresight([ROUTER, None], COUNTS)
    state = torch.ones(1, 4)
    assert foresight.next(0, state, 2) is None
    assert foresight.next(1, state, 2) is None


def test_the_step_of_another_batch_says_nothing_of_a_guess() -> None:
    foresight = Foresight([None, ROUTER], COUNTS)
    state = torch.ones(3, 4)
    foresight.next(0, state, 2)
    foresight.came(1, np.array([[0, 1]]))
    assert foresight.next(0, state, 2) is None
