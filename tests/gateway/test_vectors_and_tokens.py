"""Embeddings by OpenAI's own client, and tokens."""

from typing import Any

import httpx2
import openai
import pytest
from serverlessllm.v1 import deployment_service_pb2 as deployment_pb
from serverlessllm.v1 import embedding_service_pb2 as embedding_pb
from serverlessllm.v1 import model_service_pb2 as model_pb

from tests.client.fake_control import FakeControl
from tests.client.messages import deployment, finished
from tests.gateway.conftest import Open

VECTORS = [[0.5, -0.25], [1.0, 0.125]]


def _embedded() -> embedding_pb.EmbedResponse:
    found = [embedding_pb.Embedding(values=one, prompt_tokens=2) for one in VECTORS]
    return embedding_pb.EmbedResponse(embeddings=found, receipt=finished(0).finished.receipt)


@pytest.mark.parametrize("form", ["float", "base64", None])
async def test_vectors(control: FakeControl, client: openai.AsyncOpenAI, form: Any) -> None:
    control.reply("Embed", _embedded())
    options: dict[str, Any] = {"encoding_format": form} if form else {}
    answer = await client.embeddings.create(
        model="tiny", input=["a", "b"], dimensions=2, extra_body={"truncate": True}, **options
    )
    if form != "base64":
        assert [one.embedding for one in answer.data] == VECTORS
    else:
        assert answer.data[0].embedding == "AAAAPwAAgL4="  # type: ignore[comparison-overlap]  # a text
    assert [one.index for one in answer.data] == [0, 1]
    assert answer.usage.prompt_tokens == 4
    (request,) = control.requests["Embed"]
    assert [one.text for one in request.inputs] == ["a", "b"]
    assert (request.dimensions, request.truncate) == (2, True)


INPUTS: dict[str, tuple[Any, int]] = {
    "a text": ("a", 1),
    "tokens": ([1, 2], 1),
    "tokens of several": ([[1, 2], [3]], 2),
}


@pytest.mark.parametrize("form", INPUTS)
async def test_inputs_of_every_form(
    control: FakeControl, client: openai.AsyncOpenAI, form: str
) -> None:
    given, count = INPUTS[form]
    control.reply("Embed", _embedded())
    await client.embeddings.create(model="tiny", input=given)
    assert len(control.requests["Embed"][0].inputs) == count


async def test_tokens_there_and_back(control: FakeControl, http: httpx2.AsyncClient) -> None:
    control.reply("Tokenize", model_pb.TokenizeResponse(token_ids=[1, 2]))
    control.reply("GetDeployment", deployment_pb.GetDeploymentResponse(deployment=deployment()))
    control.reply("Detokenize", model_pb.DetokenizeResponse(text="ab", texts=["a", "b"]))
    asked = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Hi"}],
        "return_token_strs": True,
    }
    found = (await http.post("/tokenize", json=asked)).json()
    assert found == {"count": 2, "max_model_len": 512, "tokens": [1, 2], "token_strs": ["a", "b"]}
    control.reply("Detokenize", model_pb.DetokenizeResponse(text="ab"))
    found = (await http.post("/detokenize", json={"model": "tiny", "tokens": [1, 2]})).json()
    assert found == {"prompt": "ab"}


async def test_health_and_metrics(http: httpx2.AsyncClient) -> None:
    assert (await http.get("/health")).json()["status"] == "ok"
    assert (await http.get("/metrics")).status_code == 200
    found = (await http.get("/openapi.json")).json()
    assert "/v1/chat/completions" in found["paths"]


async def test_metrics_with_a_port_of_their_own_are_there_alone(opened: Open) -> None:
    async with httpx2.AsyncClient(base_url=await opened(metrics_port=1)) as http:
        refused = await http.get("/metrics")
    assert refused.status_code == 404
    assert "--metrics-port" in refused.json()["error"]["message"]
