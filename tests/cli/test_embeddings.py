"""`sllm embed` and `score`."""

import json

from serverlessllm.v1 import embedding_service_pb2 as pb
from serverlessllm.v1 import model_service_pb2 as model_pb
from serverlessllm.v1 import types_pb2 as types

from sllm import errors
from tests.cli.conftest import Run
from tests.client.fake_control import FakeControl

SCORES = pb.ScoreResponse(scores=[pb.Score(values=[0.25, 0.5]), pb.Score(values=[0.75, 0.125])])


def model(*labels: str) -> model_pb.GetModelResponse:
    purpose = types.ModelPurpose(task=types.MODEL_TASK_SCORE, labels=labels, activation="softmax")
    return model_pb.GetModelResponse(info=types.ModelInfo(architecture="X", purpose=purpose))


def test_embed_prints_vectors_as_json(run: Run, control: FakeControl) -> None:
    vector = pb.Embedding(values=[0.5, -1.0], prompt_tokens=3)
    control.reply("Embed", pb.EmbedResponse(embeddings=[vector]))
    found = json.loads(run("embed", "e", "a text", "--no-normalize", "--dimensions", "2").out)
    assert found["embeddings"] == [{"values": [0.5, -1.0], "prompt_tokens": 3, "truncated": False}]
    (request,) = control.requests["Embed"]
    assert request == pb.EmbedRequest(
        deployment="e", inputs=[pb.EmbedInput(text="a text")], normalize=False, dimensions=2
    )


def test_score_shows_the_best_first(run: Run, control: FakeControl) -> None:
    control.reply("GetModel", model("good", "bad"))
    control.reply("Score", SCORES)
    head, *rows = [line.split() for line in run("score", "s", "q", "one", "two").out.splitlines()]
    assert head == ["good", "bad", "DOCUMENT"]
    assert rows == [["0.7500", "0.1250", "two"], ["0.2500", "0.5000", "one"]]


def test_score_without_a_query(run: Run, control: FakeControl) -> None:
    control.reply("Score", SCORES)
    found = json.loads(run("score", "s", "", "one", "two", "--json", "--raw", "--truncate").out)
    assert [one["values"] for one in found["scores"]] == [[0.25, 0.5], [0.75, 0.125]]
    (request,) = control.requests["Score"]
    assert request == pb.ScoreRequest(
        deployment="s", documents=["one", "two"], raw=True, truncate=True
    )


def test_model_tells_what_it_is_for(run: Run, control: FakeControl) -> None:
    control.reply("GetModel", model("good", "bad"))
    shown = run("model", "s").out
    assert "score" in shown
    assert "good, bad (by softmax)" in shown


def test_what_is_refused_is_told(run: Run, control: FakeControl) -> None:
    control.reply("Embed", errors.NotServed("e does not embed"))
    outcome = run("embed", "e", "a text")
    assert outcome.code
    assert "does not embed" in outcome.err
