"""POST /v1/responses, of which nothing is kept."""

from contextlib import aclosing
from typing import Any

from sllm import Finished, Tokens, errors
from sllm.gateway import failures, generating, receipts
from sllm.gateway.exchange import Exchange
from sllm.gateway.generating import Ask, Generation
from sllm.gateway.openai import answers, response_answers
from sllm.gateway.openai.response_events import ResponseEvents
from sllm.gateway.openai.response_request import ResponseRequest


async def respond(exchange: Exchange) -> None:
    """Answers a conversation."""
    request, arguments = await exchange.fields(ResponseRequest, ResponseRequest.arguments)
    ask = Ask(request.model, arguments, [{"messages": arguments.pop("messages")}])
    if request.stream:
        await _stream(exchange, request, ask)
        return
    ((request_id, result),) = await generating.results(exchange, ask)
    output = response_answers.items(request_id, result.choices[0], one_call=request.one_call)
    answer = response_answers.response(
        request,
        request_id,
        output,
        reason=result.finish_reason,
        usage=result.usage,
        receipt=result.receipt,
    )
    await exchange.reply(answers.encoded(answer), headers=receipts.server_timing(result.receipt))


async def _stream(exchange: Exchange, request: ResponseRequest, ask: Ask) -> None:
    stream = exchange.events()
    async with (
        generating.begun(exchange, ask) as (generation,),
        aclosing(_events(exchange, request, generation)) as written,
    ):
        async for part in written:
            await stream.write(part)
    await stream.close()


async def _events(exchange: Exchange, request: ResponseRequest, generation: Generation) -> Any:
    writer = ResponseEvents(request, generation.request_id)
    begun = False
    async with aclosing(generating.events(exchange, [generation])) as events:
        async for _, event in events:
            if not isinstance(event, Tokens | Finished):
                continue
            begins = b"" if begun else writer.begin()
            begun = True
            grown = writer.tokens(event) if isinstance(event, Tokens) else writer.finished(event)
            if begins or grown:
                yield begins + grown


def tell(error: errors.SllmError, status: int, request_id: str) -> bytes:
    """An error as an answer, and as an event: clients raise what has an error object in it."""
    told = failures.openai_error(error, status)
    found = {name: told["error"][name] for name in ("code", "message", "param")}
    return failures.encoded({"type": "error", **found, **told})
