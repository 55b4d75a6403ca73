"""Who is told of what nodes hold."""

import pytest

from sllm.control.cluster.nodes import NodeView
from sllm.control.cluster.tiers import Copy, Tier
from sllm.control.state.state import State
from tests.control.shapes import copy, deployment, view

OTHER = copy("other")


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (None, [copy("own")], True),
        (None, [OTHER], False),
        ([], [copy("own")], True),
        ([copy("own", resident=50)], [copy("own"), OTHER], True),
        ([copy("own"), OTHER], [OTHER], True),
        ([copy("own")], [copy("own"), copy("own", Tier.DRAM)], True),
        ([copy("own")], [copy("own")], False),
        ([copy("own")], [copy("own"), OTHER], False),
    ],
)
def test_watchers_of_a_deployment_are_told_when_its_checkpoint_comes_grows_or_goes(
    before: list[Copy] | None, after: list[Copy], told: bool
) -> None:
    state = State()
    state.set_deployment(deployment("tiny", digest="own"))
    changed = state.changes.changed("tiny")
    state.tell_of_copies(None if before is None else view(copies=before), view(copies=after))
    assert changed.is_set() is told


def test_what_a_start_tells_leaves_what_is_known_of_copies() -> None:
    state = State()
    state.set_deployment(deployment("tiny", private_bytes=7, private_bytes_per_request=2))
    of_a_start = deployment("tiny", digest="d").model
    assert state.learn_model("tiny", of_a_start)
    assert (
        state.deployments["tiny"].model
        == deployment("tiny", digest="d", private_bytes=7, private_bytes_per_request=2).model
    )
    assert state.needs["tiny"].private_bytes == 7 + 64 * 2
    assert not state.learn_model("tiny", of_a_start)


def test_a_node_that_holds_what_it_held_tells_nothing() -> None:
    state = State()
    state.set_deployment(deployment("tiny", digest="own"))
    changed = state.changes.changed("tiny")
    before = view(copies=[copy("own")])
    after = NodeView(before.facts, before.copies, {})
    state.tell_of_copies(before, after)
    assert not changed.is_set()
