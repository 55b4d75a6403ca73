"""POST /v1/embeddings."""

import asyncio
import base64
import json
import sys
from array import array
from collections.abc import AsyncIterator, Sequence
from typing import Any, ClassVar, Literal

from openai.types import CreateEmbeddingResponse
from openai.types.create_embedding_response import Usage

from sllm import Embeddings
from sllm.gateway import receipts
from sllm.gateway.exchange import Exchange
from sllm.gateway.fields import ForeignFields, Prompts
from sllm.gateway.openai import answers


class EmbeddingRequest(ForeignFields):
    """The body of POST /v1/embeddings."""

    HARMLESS: ClassVar = {"user": "names a user to whom looks for abuse"}

    input: Prompts
    model: str
    dimensions: int | None = None
    encoding_format: Literal["float", "base64"] | None = None
    normalize: bool | None = None
    truncate: bool | None = None

    def inputs(self) -> Any:
        """As `embed` takes them."""
        tokens = isinstance(self.input, list) and self.input and isinstance(self.input[0], int)
        return [self.input] if tokens else self.input


async def embed(exchange: Exchange) -> None:
    """Makes vectors of texts."""
    request, inputs = await exchange.fields(EmbeddingRequest, EmbeddingRequest.inputs)
    context = exchange.context
    found = await exchange.gateway.planes.ask(
        lambda client: client.embed(
            request.model,
            inputs,
            normalize=request.normalize,
            dimensions=request.dimensions,
            truncate=bool(request.truncate),
            priority=context.priority,
            keep_alive=context.keep_alive,
            timeout=context.deadline,
        )
    )
    as_base64 = request.encoding_format == "base64"
    body = await answer(request.model, context.request_id, found, as_base64=as_base64)
    await exchange.reply(body, headers=receipts.server_timing(found.receipt))


async def answer(model: str, request_id: str, found: Embeddings, *, as_base64: bool) -> bytes:
    """The body of an answer."""
    parts = [part async for part in _vectors(found, as_base64=as_base64)]
    empty = _empty(model, request_id, found)
    return empty.replace(b'"data":[]', b'"data":[' + b",".join(parts) + b"]", 1)


def _empty(model: str, request_id: str, found: Embeddings) -> bytes:
    """The answer without its vectors."""
    tokens = found.prompt_tokens
    more: Any = {"sllm": receipts.own(request_id, found.receipt)}
    made = CreateEmbeddingResponse(
        data=[],
        model=model,
        object="list",
        usage=Usage(prompt_tokens=tokens, total_tokens=tokens),
        **more,
    )
    return answers.encoded(made)


async def _vectors(found: Embeddings, *, as_base64: bool) -> AsyncIterator[bytes]:
    """Each as JSON; others have their turn between two, since there may be millions of numbers."""
    for index, one in enumerate(found.embeddings):
        values = _base64(one.values) if as_base64 else list(one.values)
        part = {"object": "embedding", "index": index, "embedding": values}
        yield json.dumps(part).encode()
        await asyncio.sleep(0)


def _base64(values: Sequence[float]) -> str:
    """Little-endian float32, which OpenAI's own client asks for."""
    numbers = array("f", values)
    if sys.byteorder == "big":
        numbers.byteswap()
    return base64.b64encode(numbers).decode()
