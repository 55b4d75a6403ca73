"""Which steps are left for somebody who comes, and which are not."""

import pytest
import torch
from torch import nn

from sllm.node.worker.engine.interruption import BrokenOff, Lookout


class Model(nn.Module):
    """Has layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Identity(), nn.Identity()])

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            rows = layer(rows)
        return rows


def left(steps: list[list[bool]], *, has_come: bool = True) -> list[bool]:
    """Which of some steps were left; of each request of a step, whether nobody waits for it."""
    model, lookout = Model(), Lookout(lambda: has_come)
    lookout.attach(model)
    found = []
    for kinds in steps:
        lookout.begin(kinds)
        try:
            model(torch.zeros(1))
            found.append(False)
        except BrokenOff:
            found.append(True)
    assert lookout.count == sum(found)
    lookout.detach()
    model(torch.zeros(1))
    return found


BACKGROUND, AWAITED, BOTH, NOTHING = [True, True], [False], [True, False], list[bool]()


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([BACKGROUND] * 4, [True, False, True, False]),
        # Whoever comes has a step alone; who was left gets on in the next one all the same.
        ([BACKGROUND, AWAITED] * 4, [True, False, False, False] * 2),
        ([BACKGROUND, AWAITED, AWAITED, BACKGROUND], [True, False, False, False]),
        ([BACKGROUND, NOTHING, BACKGROUND], [True, False, False]),
        # In a step with others they get on as well.
        ([BACKGROUND, BOTH, BACKGROUND], [True, False, True]),
        ([AWAITED, BOTH, NOTHING], [False] * 3),
    ],
)
def test_those_that_nobody_waits_for_get_on_however_many_come(
    steps: list[list[bool]], expected: list[bool]
) -> None:
    assert left(steps) == expected


def test_nothing_is_left_while_nobody_comes() -> None:
    assert left([BACKGROUND, AWAITED, BOTH, BACKGROUND], has_come=False) == [False] * 4
