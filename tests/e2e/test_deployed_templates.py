"""Deployments with a chat template of their own."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from serverlessllm.v1 import inference_service_pb2, model_service_pb2, types_pb2
from serverlessllm.v1.inference_service_pb2_grpc import InferenceServiceStub
from serverlessllm.v1.model_service_pb2_grpc import ModelServiceStub

from sllm import errors
from sllm.control.cluster.validation import MAX_TEMPLATE
from tests.e2e.cluster import Cluster

HI: Any = [{"role": "user", "content": "Hi"}]
LOUD = "{% for m in messages %}<{{ m.role | upper }}> {{ m.content }}{% endfor %}!"
WITH_TOOLS = "{{ messages[0].content }}{% for t in tools or [] %}[{{ t }}]{% endfor %}"
REFUSES = "{{ raise_exception('only with a system message') }}"
NAME = "templated"


@pytest.fixture(scope="module")
def source(models: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model without a template."""
    model = shutil.copytree(models / "tiny-gpt2", tmp_path_factory.mktemp("plain") / "model")
    for named in model.glob("chat_template*"):
        named.unlink()
    settings = json.loads((model / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    return f"file://{model}"


@pytest.fixture
def deployed(cluster: Cluster, source: str) -> Iterator[str]:
    cluster.client.deploy(NAME, source, engine="transformers", chat_template=LOUD)
    yield NAME
    cluster.client.delete(NAME)


def test_conversations_are_rendered_with_it(cluster: Cluster, deployed: str) -> None:
    client = cluster.client
    assert client.render_chat(deployed, HI) == "<USER> Hi!"
    found = client.model(deployed)
    assert (found.chat_template, found.takes_tools) == (LOUD, False)
    as_text = client.tokenize(deployed, "<USER> Hi!", add_special_tokens=False)
    assert client.tokenize(deployed, messages=HI) == as_text
    from_text = client.complete(deployed, prompt_token_ids=as_text, max_tokens=4, temperature=0.0)
    chat = client.complete(deployed, messages=HI, max_tokens=4, temperature=0.0)
    assert chat.usage.prompt_tokens == len(as_text)
    assert chat.token_ids == from_text.token_ids


def test_another_takes_its_place_at_once(cluster: Cluster, deployed: str, source: str) -> None:
    client = cluster.client
    client.complete(deployed, messages=HI, max_tokens=1)
    running = [one.instance_id for one in client.instances()]
    client.deploy(deployed, source, engine="transformers", chat_template=WITH_TOOLS)
    assert client.render_chat(deployed, HI) == "Hi"
    assert client.model(deployed).takes_tools
    assert client.complete(deployed, messages=HI, max_tokens=1).usage.prompt_tokens == 2
    assert [one.instance_id for one in client.instances()] == running
    client.deploy(deployed, source, engine="transformers")
    with pytest.raises(errors.NoChatTemplate):
        client.complete(deployed, messages=HI, max_tokens=1)


@pytest.mark.parametrize(
    ("template", "error", "said"),
    [
        ("one\n{% for %}", errors.InvalidChatTemplate, "line 2"),
        ("x" * (MAX_TEMPLATE + 1), errors.InvalidArgument, str(MAX_TEMPLATE)),
    ],
)
def test_what_is_no_template_is_refused_at_once(
    cluster: Cluster, source: str, template: str, error: type[errors.SllmError], said: str
) -> None:
    with pytest.raises(error, match=said):
        cluster.client.deploy("never", source, engine="transformers", chat_template=template)
    assert "never" not in [one.name for one in cluster.client.deployments()]


def test_one_that_refuses_is_a_template(cluster: Cluster, source: str) -> None:
    cluster.client.deploy("strict", source, engine="transformers", chat_template=REFUSES)
    with pytest.raises(errors.InvalidPrompt, match="only with a system message"):
        cluster.client.render_chat("strict", HI)
    cluster.client.delete("strict")


def test_callers_bring_none(cluster: Cluster, deployed: str) -> None:
    """A template is a program."""
    said = types_pb2.ChatMessages(
        messages=[types_pb2.ChatMessage(role="user", content="Hi")], chat_template=LOUD
    )
    generate = inference_service_pb2.GenerateRequest(deployment=deployed, messages=said)
    asked: Any = {"deployment": deployed, "messages": said}
    with grpc.insecure_channel(cluster.control.address) as channel:
        models = ModelServiceStub(channel)
        calls: tuple[Callable[[], object], ...] = (
            lambda: list(InferenceServiceStub(channel).Generate(generate)),
            lambda: models.Tokenize(model_service_pb2.TokenizeRequest(**asked)),
            lambda: models.CountTokens(model_service_pb2.CountTokensRequest(**asked)),
            lambda: models.RenderChat(model_service_pb2.RenderChatRequest(**asked)),
        )
        for call in calls:
            with pytest.raises(grpc.RpcError) as refused:
                call()
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "at Deploy" in (refused.value.details() or "")


def test_batches_have_it(cluster: Cluster, deployed: str) -> None:
    asked: Any = {"deployment": deployed, "messages": HI, "max_tokens": 2}
    batch = cluster.client.submit_batch([asked])
    (outcome,) = cluster.client.batch_results(batch.batch_id)
    assert outcome.result
    counted = cluster.client.count_tokens(deployed, messages=HI).tokens
    assert outcome.result.usage.prompt_tokens == counted
