"""Texts of tokens: all that were asked for, also when none can be had any more."""

import json

import openai
import pytest
from serverlessllm.v1 import batch_service_pb2 as pb
from serverlessllm.v1 import model_service_pb2 as model_pb

from sllm import errors
from sllm.gateway import token_texts
from sllm.gateway.control_planes import ControlPlanes
from sllm.gateway.token_texts import TokenTexts
from tests.client.fake_control import FakeControl
from tests.client.messages import finished, tokens
from tests.gateway.test_batches import _batch


async def test_what_is_kept_no_longer_is_told_all_the_same(
    control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_texts, "_MOST_KEPT", 1)
    planes = ControlPlanes([control.address])
    texts = TokenTexts(planes)
    for added, wanted in (([1, 2], [1, 2]), ([3], [1, 3]), ([1, 2], [1, 2, 3])):
        told = [f"t{one}" for one in added]
        control.reply("Detokenize", model_pb.DetokenizeResponse(texts=told))
        found = await texts.of("tiny", "m", wanted)
        assert found.keys() == set(wanted)
    await planes.close()


@pytest.mark.parametrize("kind", ["chat", "text"])
async def test_results_outlive_their_deployment(
    control: FakeControl, client: openai.AsyncOpenAI, kind: str
) -> None:
    """Numbers stand in the place of what nobody can read any more."""
    batch_id = f"batch_{kind}_" + "0" * 32 + "_00000000"
    told = tokens(1, 0, 1, 2, text="ab").tokens
    answer = pb.BatchAnswer(tokens=told, finished=finished(0).finished)
    result = pb.BatchResult(number=0, request_id="tiny/a", answer=answer)
    control.reply("GetBatch", pb.GetBatchResponse(batch=_batch(batch_id, pb.BATCH_STATE_ENDED)))
    control.reply("ReadBatchResults", pb.ReadBatchResultsResponse(result=result))
    control.reply("GetDeployment", errors.DeploymentNotFound("it is gone"))
    line = json.loads((await client.files.content(f"file-output-{batch_id}")).text)
    assert "token_id:2" in json.dumps(line["response"]["body"]["choices"][0]["logprobs"])
