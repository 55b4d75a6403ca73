"""/v1/files: what batches are made of, and what comes of them."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final

from openai.types import FileObject
from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.types import Message, Receive

from sllm import errors
from sllm.gateway.bodies import Gone, check_size
from sllm.gateway.exchange import Exchange
from sllm.gateway.failures import Refusal, encoded, invalid
from sllm.gateway.files import StoredFile
from sllm.gateway.openai import answers, batch_results
from sllm.gateway.own_files import own_files

_FIELDS: Final = {"file", "purpose"}
_LONGEST_SECONDS: Final = 3600.0
"""For a whole file to arrive."""


def described(found: StoredFile) -> FileObject:
    """A file as OpenAI tells of it."""
    purpose: Any = found.purpose
    return FileObject(
        id=found.file_id,
        bytes=found.size_bytes,
        created_at=int(found.created_at),
        filename=found.name,
        object="file",
        purpose=purpose,
        status="processed",
    )


async def upload(exchange: Exchange) -> None:
    """Takes a file."""
    own = await own_files(exchange)  # first: nothing is taken from those who have no key
    settings = exchange.gateway.settings
    receive = _bounded(exchange, settings.max_file_bytes, settings.body_seconds)
    request = Request(exchange.scope, receive)
    try:
        async with asyncio.timeout(_LONGEST_SECONDS), request.form(max_files=1) as form:
            if unknown := sorted(set(form) - _FIELDS):
                raise invalid(f"{unknown[0]} is not served", unknown[0])
            if form.get("purpose") != "batch":
                raise invalid(f"purpose must be batch, not {form.get('purpose')!r:.80}", "purpose")
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise invalid("there is no file", "file")
            exchange.watch()
            found = await own.add(file.file, file.filename or "file", "batch")
    except (MultiPartException, HTTPException, FormParserError) as error:
        said = getattr(error, "detail", error)
        raise invalid(f"the body is no form of a file: {said}") from error
    except TimeoutError as error:
        raise Refusal(408, errors.DeadlineExceeded("the file has not come in time")) from error
    await exchange.reply(answers.encoded(described(found)))


def _bounded(exchange: Exchange, most: int, seconds: float) -> Receive:
    """The body's parts, each in its time, all of them within a size, and with those of others."""
    size = 0

    async def bounded() -> Message:
        nonlocal size
        async with asyncio.timeout(seconds):
            message = await exchange.receive()
        if message["type"] == "http.disconnect":
            raise Gone
        size += len(message.get("body", b""))
        check_size(size, most)
        exchange.arrives(len(message.get("body", b"")))
        return message

    return bounded


async def listed(exchange: Exchange) -> None:
    """All files of its tenant that were uploaded here."""
    exchange.watch()
    found = await (await own_files(exchange)).all()
    data = [described(one).model_dump(exclude_unset=True) for one in found]
    await exchange.reply(encoded({"object": "list", "data": data, "has_more": False}))


async def one(exchange: Exchange) -> None:
    """One file: uploaded, or of a batch's results."""
    exchange.watch()
    file_id = exchange.path_params["file"]
    if batch_id := batch_results.batch_of(file_id):
        batch = await exchange.gateway.planes.ask(lambda client: client.batch(batch_id))
        size = 0
        async with aclosing(batch_results.lines(exchange.gateway, file_id)) as lines:
            async for line in lines:
                size += len(line)
        found = StoredFile(file_id, f"{file_id}.jsonl", "batch_output", size, batch.created_at)
    else:
        found = await (await own_files(exchange)).get(file_id)
    await exchange.reply(answers.encoded(described(found)))


async def delete(exchange: Exchange) -> None:
    """Forgets a file."""
    exchange.watch()
    file_id = exchange.path_params["file"]
    await (await own_files(exchange)).delete(file_id)
    await exchange.reply(encoded({"id": file_id, "object": "file", "deleted": True}))


async def content(exchange: Exchange) -> None:
    """What is in a file; of a batch's results, as far as there are any."""
    exchange.watch()
    file_id = exchange.path_params["file"]
    if batch_results.batch_of(file_id):
        parts = batch_results.lines(exchange.gateway, file_id)
        await anext(parts)  # that there is such a batch
    else:
        parts = _read(await (await own_files(exchange)).path(file_id))
    async with aclosing(parts):
        await exchange.send_all(parts, "application/jsonl")


async def _read(path: str) -> AsyncGenerator[bytes]:
    with open(path, "rb") as file:  # noqa: ASYNC230 - opening takes no time; reading is a thread's
        while part := await asyncio.to_thread(file.read, 1 << 20):
            yield part
