"""Files and batches by OpenAI's own client, of a control plane that has them done."""

import json
from typing import Any

import httpx2
import openai
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from serverlessllm.v1 import batch_service_pb2 as pb
from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1 import worker_service_pb2 as worker_pb

from tests.client.fake_control import FakeControl
from tests.client.messages import finished

LINES = [
    {
        "custom_id": f"line {number}",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "seed": number},
    }
    for number in range(3)
]
WHEN = Timestamp(seconds=1_700_000_000)


def _file(lines: list[Any]) -> tuple[str, bytes]:
    return "in.jsonl", b"\n".join(json.dumps(line).encode() for line in lines)


def _batch(batch_id: str, state: Any, **counts: Any) -> pb.Batch:
    ended: Any = {} if state == pb.BATCH_STATE_RUNNING else {"ended_at": WHEN}
    return pb.Batch(
        batch_id=batch_id,
        state=state,
        requests=3,
        created_at=WHEN,
        expires_at=WHEN,
        **counts,
        **ended,
    )


async def test_a_file_there_and_back(client: openai.AsyncOpenAI) -> None:
    given = _file(LINES)
    file = await client.files.create(file=given, purpose="batch")
    assert (file.filename, file.bytes, file.purpose) == ("in.jsonl", len(given[1]), "batch")
    assert [one.id async for one in client.files.list()] == [file.id]
    assert (await client.files.retrieve(file.id)).id == file.id
    assert (await client.files.content(file.id)).content == given[1]
    assert (await client.files.delete(file.id)).deleted
    with pytest.raises(openai.NotFoundError):
        await client.files.content(file.id)


async def test_a_batch_from_its_file_to_its_answers(
    control: FakeControl, client: openai.AsyncOpenAI
) -> None:
    file = await client.files.create(file=_file(LINES), purpose="batch")
    running = _batch("batch_chat_" + "0" * 32 + "_00000000", pb.BATCH_STATE_RUNNING)
    control.reply("SubmitBatch", pb.SubmitBatchResponse(batch=running))
    made = await client.batches.create(
        completion_window="24h", endpoint="/v1/chat/completions", input_file_id=file.id
    )
    assert (made.status, made.output_file_id) == ("in_progress", None)
    header, *requests, end = control.requests["SubmitBatch"][0]
    batch_id = header.header.batch_id
    assert batch_id.startswith("batch_chat_" + file.id.removeprefix("file-"))
    assert [one.request.request_id for one in requests] == [f"tiny/line {n}" for n in range(3)]
    assert [one.request.sampling.seed for one in requests] == [0, 1, 2]
    assert end.end.requests == 3

    ended = _batch(batch_id, pb.BATCH_STATE_ENDED, finished=2, failed=1)
    control.reply("GetBatch", pb.GetBatchResponse(batch=ended))
    batch = await client.batches.retrieve(batch_id)
    assert (batch.status, batch.input_file_id) == ("completed", file.id)
    assert batch.output_file_id
    assert batch.error_file_id
    for asked, expected in ((batch.output_file_id, [0, 2]), (batch.error_file_id, [1])):
        control.reply("GetBatch", pb.GetBatchResponse(batch=ended))
        control.reply("ReadBatchResults", *_results())
        lines = [json.loads(one) for one in (await client.files.content(asked)).text.splitlines()]
        assert [one["custom_id"] for one in lines] == [f"line {number}" for number in expected]
        if asked == batch.output_file_id:
            body = lines[0]["response"]["body"]
            answer = openai.types.chat.ChatCompletion.model_validate(body)
            assert answer.choices[0].message.content == "Once upon"
            assert answer.model == "tiny"
        else:
            assert lines[0]["error"]["code"] == "CONTEXT_EXCEEDED"


def _results() -> list[pb.ReadBatchResultsResponse]:
    tokens = inference_pb.Tokens(token_ids=[1, 2], text="Once upon")
    answer = pb.BatchAnswer(tokens=tokens, finished=finished(0).finished)
    failure = worker_pb.Failure(code=3, reason="CONTEXT_EXCEEDED", message="too long")
    found = [
        pb.BatchResult(number=0, request_id="tiny/line 0", answer=answer),
        pb.BatchResult(number=1, request_id="tiny/line 1", failure=failure),
        pb.BatchResult(number=2, request_id="tiny/line 2", answer=answer),
    ]
    return [pb.ReadBatchResultsResponse(result=one) for one in found]


async def test_batches_of_gateways_are_listed(
    control: FakeControl, client: openai.AsyncOpenAI
) -> None:
    ours = _batch("batch_text_" + "0" * 32 + "_00000000", pb.BATCH_STATE_CANCELLED)
    other = _batch("mine", pb.BATCH_STATE_RUNNING)
    control.reply("ListBatches", pb.ListBatchesResponse(batches=[ours, other]))
    found = [one async for one in client.batches.list()]
    assert [(one.status, one.endpoint) for one in found] == [("cancelled", "/v1/completions")]
    control.reply("CancelBatch", pb.CancelBatchResponse(batch=ours))
    assert (await client.batches.cancel(ours.batch_id)).status == "cancelled"
    with pytest.raises(openai.NotFoundError):
        await client.batches.retrieve("mine")


async def test_empty_lines_are_passed_over(
    control: FakeControl, client: openai.AsyncOpenAI
) -> None:
    """However many there are."""
    name, content = _file(LINES)
    first, rest = content.split(b"\n", 1)
    given = name, first + b"\n" * ((1 << 20) + 9) + rest
    file = await client.files.create(file=given, purpose="batch")
    running = _batch("batch_chat_" + "0" * 32 + "_00000000", pb.BATCH_STATE_RUNNING)
    control.reply("SubmitBatch", pb.SubmitBatchResponse(batch=running))
    await client.batches.create(
        completion_window="24h", endpoint="/v1/chat/completions", input_file_id=file.id
    )
    _, *requests, end = control.requests["SubmitBatch"][0]
    assert (len(requests), end.end.requests) == (3, 3)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "another route": ({"url": "/v1/embeddings"}, "line 3: url"),
    "no body": ({"body": None}, "line 3: body"),
    "a stream": ({"body": {**LINES[0]["body"], "stream": True}}, "line 3: "),  # type: ignore[dict-item]  # it is one
    "an unknown field": ({"body": {**LINES[0]["body"], "foo": 1}}, "line 3: foo"),  # type: ignore[dict-item]  # it is one
}


@pytest.mark.parametrize("what", BAD)
async def test_a_line_that_makes_no_sense(
    control: FakeControl, client: openai.AsyncOpenAI, what: str
) -> None:
    change, said = BAD[what]
    control.reply("SubmitBatch")
    file = await client.files.create(
        file=_file([*LINES[:2], {**LINES[2], **change}]), purpose="batch"
    )
    with pytest.raises(openai.BadRequestError, match=said):
        await client.batches.create(
            completion_window="24h", endpoint="/v1/chat/completions", input_file_id=file.id
        )


FORMS: dict[str, dict[str, Any]] = {
    "no form": {"content": b"x"},
    "no file": {"data": {"purpose": "batch"}, "files": {"other": b"x"}},
    "another purpose": {"data": {"purpose": "vision"}, "files": {"file": b"x"}},
}


@pytest.mark.parametrize("what", FORMS)
async def test_what_is_no_file(http: httpx2.AsyncClient, what: str) -> None:
    assert (await http.post("/v1/files", **FORMS[what])).status_code == 400


@pytest.mark.parametrize("file", ["file-x", "file-..%2f..%2fetc", "file-" + "0" * 32])
async def test_files_that_are_not_there(http: httpx2.AsyncClient, file: str) -> None:
    assert (await http.get(f"/v1/files/{file}/content")).status_code == 404
