"""What has come of a batch, as the lines of a file."""

import json
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final

from sllm import Batch, BatchResult
from sllm.gateway.failures import encoded
from sllm.gateway.gateway import Gateway
from sllm.gateway.openai import chat, completions, embeddings, logprobs
from sllm.gateway.openai.chat_request import ChatRequest
from sllm.gateway.openai.logprobs import Told

ENDPOINTS: Final = {
    "chat": "/v1/chat/completions",
    "text": "/v1/completions",
    "vectors": "/v1/embeddings",
}
"""What requests of a batch ask, by the word in its id that tells it."""
_BATCH: Final = r"batch_(?P<kind>chat|text|vectors)_(?P<file>[0-9a-f]{32})_[0-9a-f]{8}"
_ID: Final = re.compile(_BATCH)
_RESULTS: Final = re.compile(rf"file-(?P<what>output|errors)-(?P<batch>{_BATCH})")


def file_of(batch_id: str, *, failed: bool) -> str:
    """The id of the file that has a batch's answers, or its failures."""
    return f"file-{'errors' if failed else 'output'}-{batch_id}"


def batch_of(file_id: str) -> str | None:
    """The batch whose results a file has. None: it has none."""
    found = _RESULTS.fullmatch(file_id)
    return found["batch"] if found else None


def parts_of(batch_id: str) -> tuple[str, str] | None:
    """What a batch asks, and of which file it was made. None: it was not made by a gateway."""
    found = _ID.fullmatch(batch_id)
    return (ENDPOINTS[found["kind"]], f"file-{found['file']}") if found else None


def custom_id(model: str, given: str) -> str:
    """The id of a request of a batch: with its model, which an answer tells."""
    return f"{model}/{given}"


async def lines(gateway: Gateway, file_id: str) -> AsyncGenerator[bytes]:
    """Nothing, and then each line of such a file.

    Raises:
        errors.BatchNotFound: There is no such batch.
    """
    found = _RESULTS.fullmatch(file_id)
    assert found is not None
    batch_id, failed = found["batch"], found["what"] == "errors"
    batch = await gateway.planes.ask(lambda client: client.batch(batch_id))
    yield b""
    told: dict[str, Told] = {}
    results = gateway.planes.current.batch_results(batch_id, follow=False)
    async with aclosing(results):
        async for one in results:
            if (one.error is not None) == failed:
                yield encoded(await _line(gateway, batch, found["kind"], one, told)) + b"\n"


async def _line(
    gateway: Gateway, batch: Batch, kind: str, one: BatchResult, readers: dict[str, Told]
) -> dict[str, Any]:
    """A line; `readers`: of models whose logprobs have been told."""
    model, _, own_id = one.request_id.partition("/")
    told: dict[str, Any] = {"id": f"{batch.batch_id}_{one.number}", "custom_id": own_id}
    if one.error:
        error = {"code": one.error.reason, "message": one.error.message}
        return {**told, "response": None, "error": error}
    reader = None
    if one.result and one.result.logprobs is not None:
        if model not in readers:
            texts, until = gateway.token_texts, batch.created_at
            readers[model] = await logprobs.told_later(texts, model, until)
        reader = readers[model]
    body = await _body(kind, model, one, reader)
    response = {"status_code": 200, "request_id": one.request_id, "body": body}
    return {**told, "response": response, "error": None}


async def _body(kind: str, model: str, one: BatchResult, told: Told | None) -> dict[str, Any]:
    found: dict[str, Any]
    if one.embeddings is not None:
        body = await embeddings.answer(model, one.request_id, one.embeddings, as_base64=False)
        found = json.loads(body)
        return found
    assert one.result is not None
    answer: Any
    if kind == "chat":
        request = ChatRequest(model=model, messages=[])
        answer = await chat.completion(request, one.request_id, one.result, told)
    else:
        answer = await completions.completion(model, [(one.request_id, one.result)], told)
    found = answer.model_dump(mode="json", exclude_unset=True)
    return found
