"""What `embed` and `score` ask of the control plane, and what they make of its answers."""

from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from serverlessllm.v1 import embedding_service_pb2 as pb
from serverlessllm.v1 import types_pb2 as types

import sllm
from sllm import errors
from tests.client.conftest import Call
from tests.client.fake_control import FakeControl

RECEIPT = types.Receipt(cold=True, node_id="n1", instance_id="i-1", engine="transformers")
VECTORS = pb.EmbedResponse(
    embeddings=[
        pb.Embedding(values=[0.5, -1.0], prompt_tokens=3),
        pb.Embedding(values=[0.0, 2.0], prompt_tokens=4, truncated=True),
    ],
    receipt=RECEIPT,
)
SCORES = pb.ScoreResponse(
    scores=[pb.Score(values=[0.25], prompt_tokens=3), pb.Score(values=[0.75], prompt_tokens=4)],
    receipt=RECEIPT,
)


def test_embed_says_what_it_was_told(control: FakeControl, call: Call) -> None:
    control.reply("Embed", VECTORS)
    more: dict[str, Any] = {"dimensions": 2, "truncate": True, "priority": 1, "keep_alive": 2.0}
    call("embed", "e", ["a", [1, 2]], normalize=False, **more)
    (request,) = control.requests["Embed"]
    tokens = pb.EmbedInput(token_ids=types.TokenIds(ids=[1, 2]))
    assert request == pb.EmbedRequest(
        deployment="e",
        inputs=[pb.EmbedInput(text="a"), tokens],
        normalize=False,
        dimensions=2,
        truncate=True,
        priority=1,
        keep_alive=Duration(seconds=2),
    )


def test_embed_says_nothing_of_what_it_was_not_told(control: FakeControl, call: Call) -> None:
    control.reply("Embed", VECTORS)
    call("embed", "e", "one text")
    (request,) = control.requests["Embed"]
    assert request == pb.EmbedRequest(deployment="e", inputs=[pb.EmbedInput(text="one text")])


def test_embed_returns_vectors(control: FakeControl, call: Call) -> None:
    control.reply("Embed", VECTORS)
    found = call("embed", "e", ["a", "b"])
    assert isinstance(found, sllm.Embeddings)
    assert found.vectors == [(0.5, -1.0), (0.0, 2.0)]
    assert found.embeddings[1] == sllm.Embedding((0.0, 2.0), prompt_tokens=4, truncated=True)
    assert found.prompt_tokens == 7
    assert (found.receipt.cold, found.receipt.node_id) == (True, "n1")


def test_score_says_what_it_was_told(control: FakeControl, call: Call) -> None:
    for _ in range(3):
        control.reply("Score", SCORES)
    call("score", "s", "q", ["a", "b"], raw=True, truncate=True, priority=-1, keep_alive=0.0)
    call("score", "s", ["q", "r"], ["a", "b"])
    call("score", "s", None, "a")
    whole, pairs, alone = control.requests["Score"]
    assert whole == pb.ScoreRequest(
        deployment="s",
        queries=["q"],
        documents=["a", "b"],
        raw=True,
        truncate=True,
        priority=-1,
        keep_alive=Duration(),
    )
    assert list(pairs.queries) == ["q", "r"]
    assert (list(alone.queries), list(alone.documents)) == ([], ["a"])


def test_score_returns_scores(control: FakeControl, call: Call) -> None:
    control.reply("Score", SCORES)
    found = call("score", "s", "q", ["a", "b"])
    assert isinstance(found, sllm.Scores)
    assert [one.value for one in found.scores] == [0.25, 0.75]
    assert found.ranking == [1, 0]
    assert found.prompt_tokens == 7


@pytest.mark.parametrize("inputs", [["\ud800"], [[2**31]], [1.5]])
def test_what_no_message_holds_is_refused(call: Call, inputs: Any) -> None:
    with pytest.raises((errors.InvalidArgument, TypeError)):
        call("embed", "e", inputs)


GOING = errors.ShuttingDown("the control plane is going down; try again")


def test_a_control_plane_that_is_restarted_is_asked_again(control: FakeControl, call: Call) -> None:
    for outcome in (GOING, errors.Unreachable("not yet"), VECTORS):
        control.reply("Embed", outcome)
    assert len(call("embed", "e", ["a", "b"]).vectors) == 2
    assert len(control.requests["Embed"]) == 3


def test_who_does_not_want_to_wait_for_it_is_told(control: FakeControl, call: Call) -> None:
    control.reply("Embed", GOING)
    with pytest.raises(errors.ShuttingDown):
        call("embed", "e", "a", reattach=0.0)
    control.reply("Score", errors.Unreachable("nobody is there"))
    with pytest.raises(errors.Unreachable):
        call("score", "s", "q", "a")
    assert len(control.requests["Embed"]) == len(control.requests["Score"]) == 1


def test_errors_are_those_of_the_control_plane(control: FakeControl, call: Call) -> None:
    control.reply("Embed", errors.NotServed("e does not embed; it generates text: call Generate"))
    with pytest.raises(errors.NotServed, match="call Generate"):
        call("embed", "e", "a")
