"""/v1/batches: many requests that nobody waits for."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO, Any, ClassVar, Final, Literal, cast

from openai.types import Batch as OpenAIBatch
from openai.types.batch_request_counts import BatchRequestCounts

from sllm import Batch, BatchRequest, BatchState, errors
from sllm.gateway.bodies import checked, parsed
from sllm.gateway.exchange import Exchange
from sllm.gateway.failures import encoded, invalid
from sllm.gateway.fields import ForeignFields, Refused
from sllm.gateway.openai import answers, batch_results
from sllm.gateway.openai.chat_request import ChatRequest
from sllm.gateway.openai.completion_request import CompletionRequest
from sllm.gateway.openai.embeddings import EmbeddingRequest
from sllm.gateway.own_files import own_files

_KINDS: Final = {endpoint: kind for kind, endpoint in batch_results.ENDPOINTS.items()}
_DAY: Final = 24 * 3600.0
_LINES_AT_ONCE: Final = 64
"""That are read at a time."""
_BYTES_AT_ONCE: Final = 1 << 20
"""The same, where lines are long."""
_STATES: Final[dict[BatchState, Any]] = {
    BatchState.RUNNING: "in_progress",
    BatchState.ENDED: "completed",
    BatchState.CANCELLED: "cancelled",
}


class BatchBody(ForeignFields):
    """The body of POST /v1/batches."""

    REFUSED: ClassVar = {
        "output_expires_after": Refused("results are kept for as long as their batch is")
    }
    HARMLESS: ClassVar = {"metadata": "labels; they are not kept"}

    completion_window: Literal["24h"]
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings"]
    input_file_id: str


class Line(ForeignFields):
    """A line of a batch's file."""

    custom_id: str
    method: Literal["POST"]
    url: str
    body: dict[str, Any]


async def create(exchange: Exchange) -> None:
    """Has a file's requests done."""
    request, _ = await exchange.fields(BatchBody, lambda one: one)
    gateway, most = exchange.gateway, exchange.gateway.settings.max_body_bytes
    path = Path(await (await own_files(exchange)).path(request.input_file_id))
    file = request.input_file_id.removeprefix("file-")
    batch_id = f"batch_{_KINDS[request.endpoint]}_{file}_{uuid.uuid4().hex[:8]}"
    found = await gateway.planes.ask(
        lambda client: client.submit_batch(
            _requests(path, request.endpoint, most), batch_id=batch_id, time_limit=_DAY
        )
    )
    await exchange.reply(answers.encoded(_described(found)))


async def _requests(path: Path, endpoint: str, most: int) -> AsyncIterator[BatchRequest]:
    """A file's requests, read in threads; `most`: bytes of a line, which is a request's body."""
    with path.open("rb") as file:
        number = 0
        while found := await asyncio.to_thread(_some, file, endpoint, number, most):
            number += len(found)
            for one in found:
                yield one


def _some(file: IO[bytes], endpoint: str, number: int, most: int) -> list[BatchRequest]:
    """The next requests, behind so many. Empty: there are no more."""
    found: list[BatchRequest] = []
    size = 0
    while len(found) < _LINES_AT_ONCE and size < _BYTES_AT_ONCE:
        line = file.readline(most + 1)
        if not line:
            break
        if len(line) > most:
            raise invalid(f"line {number + len(found) + 1} may have {most} bytes, not more")
        if line.strip():
            size += len(line)
            found.append(_request(line, endpoint, number + len(found) + 1))
    return found


def _request(line: bytes, endpoint: str, number: int) -> BatchRequest:
    try:
        found = checked(Line, parsed(line))
        if found.url != endpoint:
            raise invalid(f"url is {found.url!r:.80}, and the batch's endpoint {endpoint}", "url")
        return _arguments(found)
    except errors.InvalidRequest as error:
        raise type(error)(f"line {number}: {error.message}", metadata=error.metadata) from error


def _arguments(line: Line) -> BatchRequest:
    found: Any
    if line.url == batch_results.ENDPOINTS["chat"]:
        chat = checked(ChatRequest, line.body)
        if chat.stream or chat.one_call:
            raise invalid("a batch has no stream, and no parallel_tool_calls of false", "stream")
        model, found = chat.model, chat.arguments()
    elif line.url == batch_results.ENDPOINTS["vectors"]:
        vectors = checked(EmbeddingRequest, line.body)
        model, found = vectors.model, _of_vectors(vectors)
    else:
        text = checked(CompletionRequest, line.body)
        prompts = text.prompts()
        if text.stream or len(prompts) > 1:
            raise invalid("a batch has no stream, and of each request one prompt", "prompt")
        model, found = text.model, {**text.arguments(), **prompts[0]}
    request_id = batch_results.custom_id(model, line.custom_id)
    return cast(BatchRequest, {"deployment": model, "request_id": request_id, **found})


def _of_vectors(asked: EmbeddingRequest) -> dict[str, Any]:
    if asked.encoding_format == "base64":
        raise invalid("a batch's vectors are lists of numbers", "encoding_format")
    options = {"normalize": asked.normalize, "dimensions": asked.dimensions}
    given = {name: value for name, value in options.items() if value is not None}
    return {"inputs": asked.inputs(), "truncate": bool(asked.truncate), **given}


async def one(exchange: Exchange) -> None:
    """How far a batch is."""
    exchange.watch()
    batch_id = _known(exchange)
    found = await exchange.gateway.planes.ask(lambda client: client.batch(batch_id))
    await exchange.reply(answers.encoded(_described(found)))


async def cancel(exchange: Exchange) -> None:
    """Ends a batch."""
    exchange.watch()
    batch_id = _known(exchange)
    found = await exchange.gateway.planes.ask(lambda client: client.cancel_batch(batch_id))
    await exchange.reply(answers.encoded(_described(found)))


async def listed(exchange: Exchange) -> None:
    """All batches that were made by gateways, the latest first."""
    exchange.watch()
    found = await exchange.gateway.planes.ask(lambda client: client.batches())
    ours = [one for one in found if batch_results.parts_of(one.batch_id)]
    ours.sort(key=lambda one: -one.created_at)
    data = [_described(one).model_dump(mode="json", exclude_unset=True) for one in ours]
    await exchange.reply(encoded({"object": "list", "data": data, "has_more": False}))


def _known(exchange: Exchange) -> str:
    batch_id = exchange.path_params["batch"]
    if not batch_results.parts_of(batch_id):
        raise errors.BatchNotFound(f"no gateway has made a batch {batch_id!r:.80}")
    return batch_id


def _described(batch: Batch) -> OpenAIBatch:
    """A batch as OpenAI tells of it."""
    parts = batch_results.parts_of(batch.batch_id)
    assert parts is not None
    endpoint, file_id = parts
    ended = int(batch.ended_at) if batch.ended_at is not None else None
    cancelled = batch.state is BatchState.CANCELLED
    over = batch.state is not BatchState.RUNNING
    return OpenAIBatch(
        id=batch.batch_id,
        completion_window="24h",
        created_at=int(batch.created_at),
        endpoint=endpoint,
        input_file_id=file_id,
        object="batch",
        status=_STATES.get(batch.state, "in_progress"),
        in_progress_at=int(batch.created_at),
        expires_at=int(batch.expires_at),
        completed_at=None if cancelled else ended,
        cancelled_at=ended if cancelled else None,
        output_file_id=_file(batch, failed=False) if over and batch.finished else None,
        error_file_id=_file(batch, failed=True) if over and batch.failed else None,
        request_counts=BatchRequestCounts(
            total=batch.requests, completed=batch.finished, failed=batch.failed
        ),
    )


def _file(batch: Batch, *, failed: bool) -> str:
    return batch_results.file_of(batch.batch_id, failed=failed)
