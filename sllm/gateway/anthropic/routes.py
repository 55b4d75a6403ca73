"""The routes of Anthropic's protocol."""

from collections.abc import Sequence
from contextlib import aclosing
from typing import Any, Final

from sllm import AsyncClient, Finished, Started, TokenCount, Tokens, errors
from sllm.gateway import failures, generating, receipts
from sllm.gateway.anthropic import answers
from sllm.gateway.anthropic.blocks import Blocks
from sllm.gateway.anthropic.requests import CountRequest, MessageRequest
from sllm.gateway.endpoint import Endpoint
from sllm.gateway.exchange import Exchange
from sllm.gateway.generating import Ask, Generation


async def messages(exchange: Exchange) -> None:
    """Answers a conversation."""
    request, arguments = await exchange.fields(MessageRequest, MessageRequest.arguments)
    ask = Ask(request.model, arguments, [{"messages": arguments.pop("messages")}])
    if request.stream:
        await _stream(exchange, request, ask)
        return
    ((request_id, result),) = await generating.results(exchange, ask)
    answer = answers.message(request.model, request_id, result, one_call=request.one_call)
    encoded = answer.model_dump_json(exclude_unset=True).encode()
    await exchange.reply(encoded, headers=receipts.server_timing(result.receipt))


async def _stream(exchange: Exchange, request: MessageRequest, ask: Ask) -> None:
    stream = exchange.events()
    async with (
        generating.begun(exchange, ask) as generations,
        aclosing(_events(exchange, request, generations)) as written,
    ):
        async for part in written:
            if part:
                await stream.write(part)
    await stream.close()


async def _events(
    exchange: Exchange, request: MessageRequest, generations: Sequence[Generation]
) -> Any:
    request_id, prompt_tokens = generations[0].request_id, 0
    blocks: Blocks | None = None
    async with aclosing(generating.events(exchange, generations)) as events:
        async for _, event in events:
            if isinstance(event, Started):
                prompt_tokens = event.prompt_tokens
            elif isinstance(event, Tokens | Finished):
                if blocks is None:
                    begun = answers.begun(request.model, request_id, prompt_tokens)
                    blocks = Blocks(begun, one_call=request.one_call)
                if isinstance(event, Tokens):
                    yield blocks.tokens(event)
                else:
                    yield blocks.finished(event, receipts.own(request_id, event.receipt))


async def count_tokens(exchange: Exchange) -> None:
    """Counts the tokens of a conversation."""
    request, said = await exchange.fields(CountRequest, CountRequest.counted)

    async def count(client: AsyncClient) -> TokenCount:
        return await client.count_tokens(request.model, **said)

    found = await exchange.gateway.planes.ask(count)
    await exchange.reply(failures.encoded({"input_tokens": found.tokens}))


def _tell(error: errors.SllmError, status: int, request_id: str) -> bytes:
    return failures.encoded(failures.anthropic_error(error, status, request_id))


ENDPOINTS: Final[Sequence[Endpoint]] = (
    Endpoint(
        "POST",
        "/v1/messages",
        messages,
        "Answers a conversation.",
        MessageRequest,
        tell=_tell,
        event="error",
    ),
    Endpoint(
        "POST",
        "/v1/messages/count_tokens",
        count_tokens,
        "Counts the tokens of a conversation.",
        CountRequest,
        tell=_tell,
    ),
)
