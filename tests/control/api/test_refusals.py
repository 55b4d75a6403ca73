"""Every way to be refused, by type and before anything happens."""

import gc
import math
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from serverlessllm.v1 import cluster_service_pb2 as cluster_pb
from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1 import types_pb2 as pb

from sllm import errors, rpc
from sllm.prompt_size import BYTES_BESIDE, MAX_BYTES_PER_TOKEN
from tests.control.clusters import SECONDS, Cluster
from tests.control.fake_node import FakeNode
from tests.support import assert_eventually

Sampling = pb.SamplingParams
CONTEXT = 1024
"""Of the fake node's models."""
LONG = "x" * (BYTES_BESIDE + MAX_BYTES_PER_TOKEN * CONTEXT)

Choice = inference_pb.ChoiceContinuation
FINISHED = inference_pb.Finished(usage=pb.Usage(completion_tokens=1))
NOTHING = inference_pb.Finished()
TOLD_LESS = inference_pb.Continuation(prompt_logprobs=-1)
ENDLESS = inference_pb.Continuation(token_ids=[5] * len(LONG))


def resumed(choices: list[Choice]) -> dict[str, Any]:
    return {"resume_from_sequence": 3, "choices": choices}


GENERATE: dict[str, tuple[dict[str, Any], type[errors.SllmError]]] = {
    "an unknown deployment": ({"deployment": "nobody", "text": "a"}, errors.DeploymentNotFound),
    "no prompt": ({}, errors.InvalidPrompt),
    "an empty text": ({"text": ""}, errors.InvalidPrompt),
    "no token ids": ({"token_ids": pb.TokenIds()}, errors.InvalidPrompt),
    "no messages": ({"messages": pb.ChatMessages()}, errors.InvalidPrompt),
    "a NaN": ({"text": "a", "sampling": Sampling(temperature=math.nan)}, errors.InvalidSampling),
    "negative": ({"text": "a", "sampling": Sampling(temperature=-1)}, errors.InvalidSampling),
    "top_p of zero": ({"text": "a", "sampling": Sampling(top_p=0)}, errors.InvalidSampling),
    "top_k below zero": ({"text": "a", "sampling": Sampling(top_k=-1)}, errors.InvalidSampling),
    "no tokens": ({"text": "a", "max_tokens": 0}, errors.InvalidArgument),
    "logprobs above 20": ({"text": "a", "logprobs": 21}, errors.InvalidArgument),
    "negative logprobs": ({"text": "a", "logprobs": -1}, errors.InvalidArgument),
    "prompt_logprobs above 20": ({"text": "a", "prompt_logprobs": 21}, errors.InvalidArgument),
    "negative prompt_logprobs": ({"text": "a", "prompt_logprobs": -1}, errors.InvalidArgument),
    "fewer than none told": (
        {"text": "a", "continuation": inference_pb.Continuation(prompt_logprobs=-1)},
        errors.InvalidArgument,
    ),
    "an empty stop": ({"text": "a", "stop": [""]}, errors.InvalidArgument),
    "a negative keep_alive": (
        {"text": "a", "keep_alive": Duration(seconds=-1)},
        errors.InvalidArgument,
    ),
    "a keep_alive of ages": (
        {"text": "a", "keep_alive": Duration(seconds=10**9)},
        errors.InvalidArgument,
    ),
    "a linger of hours": ({"text": "a", "linger": Duration(seconds=3601)}, errors.InvalidArgument),
    "a negative linger": ({"text": "a", "linger": Duration(nanos=-1)}, errors.InvalidArgument),
    "an id of 257 letters": ({"text": "a", "request_id": "x" * 257}, errors.InvalidArgument),
    "before the beginning": ({"text": "a", "resume_from_sequence": -1}, errors.InvalidArgument),
    "a text that no context holds": ({"text": LONG}, errors.ContextExceeded),
    "messages that no context holds": (
        {"messages": pb.ChatMessages(messages=[pb.ChatMessage(role="user", content=LONG)])},
        errors.ContextExceeded,
    ),
    "many messages": (
        {"messages": pb.ChatMessages(messages=[pb.ChatMessage()] * len(LONG))},
        errors.ContextExceeded,
    ),
    "as many tokens as the context": (
        {"token_ids": pb.TokenIds(ids=[5] * CONTEXT)},
        errors.ContextExceeded,
    ),
    "stops that no context holds": ({"text": "a", "stop": [LONG]}, errors.ContextExceeded),
    "17 stops": ({"text": "a", "stop": ["x"] * 17}, errors.InvalidArgument),
    "no samples": ({"text": "a", "n": 0}, errors.InvalidArgument),
    "129 samples": ({"text": "a", "n": 129}, errors.InvalidArgument),
    "fewer than no samples": ({"text": "a", "n": -(2**31)}, errors.InvalidArgument),
    "samples with a long id": (
        {"text": "a", "n": 2, "request_id": "x" * 241},
        errors.InvalidArgument,
    ),
    "an id of a sample": ({"text": "a", "request_id": "r/choice/1"}, errors.InvalidArgument),
    "choices of one": ({"text": "a", "n": 1, **resumed([Choice()])}, errors.InvalidArgument),
    "a sample too many": (
        {"text": "a", "n": 2, **resumed([Choice(choice=2)])},
        errors.InvalidArgument,
    ),
    "a negative sample": (
        {"text": "a", "n": 2, **resumed([Choice(choice=-1)])},
        errors.InvalidArgument,
    ),
    "a sample twice": (
        {"text": "a", "n": 2, **resumed([Choice(), Choice()])},
        errors.InvalidArgument,
    ),
    "an end with other tokens": (
        {"text": "a", "n": 2, **resumed([Choice(finished=FINISHED)])},
        errors.InvalidArgument,
    ),
    "samples that did not break off": (
        {"text": "a", "n": 2, "choices": [Choice()]},
        errors.InvalidArgument,
    ),
    "samples that go on as one": (
        {"text": "a", "n": 2, "continuation": inference_pb.Continuation()},
        errors.InvalidArgument,
    ),
    "samples of a text that no context holds": (
        {"text": LONG, "n": 128},
        errors.ContextExceeded,
    ),
    "samples without a prompt that have all ended": (
        {"n": 2, **resumed([Choice(finished=NOTHING), Choice(choice=1, finished=NOTHING)])},
        errors.InvalidPrompt,
    ),
    "a sample with fewer than none told": (
        {"text": "a", "n": 2, **resumed([Choice(continuation=TOLD_LESS)])},
        errors.InvalidArgument,
    ),
    "a sample longer than the context": (
        {"text": "a", "n": 2, **resumed([Choice(continuation=ENDLESS)])},
        errors.ContextExceeded,
    ),
}


@pytest.mark.parametrize("what", GENERATE)
async def test_generate_refuses(cluster: Cluster, node: FakeNode, what: str) -> None:
    fields, expected = GENERATE[what]
    await cluster.caller.deploy()
    request = inference_pb.GenerateRequest(**{"deployment": "tiny", **fields})
    with pytest.raises(expected) as caught, rpc.typed_errors():
        await cluster.caller.inference.Generate(request, timeout=SECONDS).read()
    assert type(caught.value) is expected
    assert len(str(caught.value)) > 10
    assert node.count("StartInstance") == 0


DEPLOY: dict[str, tuple[dict[str, Any], type[errors.SllmError]]] = {
    "capitals": ({"name": "Tiny"}, errors.InvalidName),
    "a space": ({"name": "a b"}, errors.InvalidName),
    "an empty name": ({"name": ""}, errors.InvalidName),
    "64 letters": ({"name": "a" * 64}, errors.InvalidName),
    "a newline": ({"name": "a\n"}, errors.InvalidName),
    "a relative source": ({"source": "models/tiny"}, errors.InvalidSource),
    "an unknown engine": ({"engine": "warp"}, errors.InvalidArgument),
    "an unknown dtype": ({"dtype": "float12"}, errors.InvalidArgument),
    "no KV cache": ({"kv_cache_tokens": 0}, errors.InvalidArgument),
    "no concurrency": ({"max_concurrency": 0}, errors.InvalidArgument),
    "negative replicas": ({"min_replicas": -1}, errors.InvalidArgument),
    "no replicas": ({"max_replicas": 0}, errors.InvalidArgument),
    "more replicas than there may be": ({"max_replicas": 1025}, errors.InvalidArgument),
    "as many replicas as a number holds": (
        {"min_replicas": 2**31 - 1, "max_replicas": 2**31 - 1},
        errors.InvalidArgument,
    ),
    "min above max": ({"min_replicas": 3, "max_replicas": 2}, errors.InvalidArgument),
    "a negative keep-alive": ({"keep_alive": -1.0}, errors.InvalidArgument),
    "a keep-alive of ages": ({"keep_alive": 1e9}, errors.InvalidArgument),
    "too much concurrency": ({"max_concurrency": 4097}, errors.InvalidArgument),
}


@pytest.mark.parametrize("what", DEPLOY)
async def test_deploy_refuses_before_any_node_is_asked(
    cluster: Cluster, node: FakeNode, what: str
) -> None:
    fields, expected = DEPLOY[what]
    with pytest.raises(expected) as caught:
        await cluster.caller.deploy(**fields)
    assert type(caught.value) is expected
    assert node.calls == []


INSPECTED = (errors.UnsupportedModel, errors.CheckpointCorrupt, errors.SourceNotFound)


@pytest.mark.parametrize("cls", INSPECTED)
async def test_what_a_node_says_of_a_source_reaches_the_caller(
    cluster: Cluster, node: FakeNode, cls: type[errors.SllmError]
) -> None:
    node.script.inspect_error = cls("the source is not as it should be")
    with pytest.raises(cls, match="as it should be"):
        await cluster.caller.deploy()
    with pytest.raises(errors.DeploymentNotFound):
        await cluster.caller.deployment("tiny")


@pytest.mark.parametrize("size", [-1, 1001])
async def test_pages_have_bounds(cluster: Cluster, size: int) -> None:
    request = cluster_pb.ListNodesRequest(page_size=size)
    with pytest.raises(errors.InvalidArgument), rpc.typed_errors():
        await cluster.caller.cluster.ListNodes(request)


async def _refused(cluster: Cluster) -> None:
    request = inference_pb.GenerateRequest(deployment="tiny", text=LONG)
    with pytest.raises(errors.ContextExceeded), rpc.typed_errors():
        await cluster.caller.inference.Generate(request, timeout=SECONDS).read()


async def test_nothing_of_a_refused_prompt_is_kept(cluster: Cluster, node: FakeNode) -> None:
    """Not even until the garbage collector comes by, for which there may be no reason for long."""

    def kept() -> list[object]:
        Request = inference_pb.GenerateRequest
        # By its type alone: others' objects do things when they are asked what they are.
        found = [one for one in gc.get_objects() if type(one) is Request]
        return [one for one in found if one.text == LONG]

    await cluster.caller.deploy()
    gc.collect()
    gc.disable()
    try:
        await _refused(cluster)
        await assert_eventually(lambda: not kept())
    finally:
        gc.enable()
