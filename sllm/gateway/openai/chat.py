"""POST /v1/chat/completions."""

import json
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

from openai.types.chat import ChatCompletion, ChatCompletionMessage
from openai.types.chat.chat_completion import Choice, ChoiceLogprobs
from openai.types.chat.chat_completion_chunk import ChoiceLogprobs as ChunkLogprobs
from openai.types.chat.chat_completion_message_function_tool_call import (
    ChatCompletionMessageFunctionToolCall,
    Function,
)

import sllm
from sllm import ChoiceFinished, Finished, Result, Tokens
from sllm.gateway import generating, receipts
from sllm.gateway.exchange import Exchange
from sllm.gateway.generating import Ask, Generation
from sllm.gateway.openai import answers, chunks, logprobs
from sllm.gateway.openai.chat_request import ChatRequest
from sllm.gateway.openai.chunks import ChatChunks
from sllm.gateway.openai.logprobs import Told

DONE = b"data: [DONE]\n\n"


async def complete(exchange: Exchange) -> None:
    """Answers a conversation."""
    request, arguments = await exchange.fields(ChatRequest, ChatRequest.arguments)
    prompt = {"messages": arguments.pop("messages")}
    ask = Ask(request.model, arguments, [prompt])
    told = None
    if "logprobs" in arguments:
        told = await logprobs.told(exchange.gateway.token_texts, request.model)
    if request.stream:
        await _stream(exchange, request, ask, told)
    else:
        ((request_id, result),) = await generating.results(exchange, ask)
        answer = await completion(request, request_id, result, told)
        timing = receipts.server_timing(result.receipt)
        await exchange.reply(answers.encoded(answer), headers=timing)


async def completion(
    request: ChatRequest, request_id: str, result: Result, told: Told | None
) -> ChatCompletion:
    """The answer to a request."""
    head = answers.head("chatcmpl", request_id, request.model)
    more: Any = {"sllm": receipts.own(request_id, result.receipt)}
    return ChatCompletion(
        id=head.id,
        choices=[
            await _choice(index, one, told, one_call=request.one_call)
            for index, one in enumerate(result.choices)
        ],
        created=head.created,
        model=head.model,
        object="chat.completion",
        usage=answers.usage([result.usage]),
        **more,
    )


async def _choice(index: int, choice: sllm.Choice, told: Told | None, *, one_call: bool) -> Choice:
    content = None
    if told and choice.logprobs is not None:
        content = await told.chat(choice.token_ids, choice.logprobs)
    return Choice(
        finish_reason=answers.finish_reason(choice.finish_reason),
        index=index,
        logprobs=ChoiceLogprobs(content=content, refusal=None) if told else None,
        message=_message(choice, choice.tool_calls[:1] if one_call else choice.tool_calls),
    )


def _message(choice: sllm.Choice, calls: Sequence[sllm.ToolCall]) -> ChatCompletionMessage:
    message = ChatCompletionMessage(
        content=choice.text or (None if calls else ""), refusal=None, role="assistant"
    )
    if calls:
        message.tool_calls = [_call(one) for one in calls]
    if choice.reasoning:
        answers.set_reasoning(message, choice.reasoning)
    return message


def _call(call: sllm.ToolCall) -> ChatCompletionMessageFunctionToolCall:
    arguments = call["function"]["arguments"]
    return ChatCompletionMessageFunctionToolCall(
        id=call.get("id", ""),
        function=Function(
            name=call["function"]["name"],
            arguments=arguments if isinstance(arguments, str) else json.dumps(arguments),
        ),
        type="function",
    )


async def _stream(exchange: Exchange, request: ChatRequest, ask: Ask, told: Told | None) -> None:
    stream = exchange.events()
    async with generating.begun(exchange, ask) as generations:
        head = answers.head("chatcmpl", generations[0].request_id, request.model)
        writer = ChatChunks(head, tells_usage=request.tells_usage, one_call=request.one_call)
        async with aclosing(_chunks(exchange, ask, generations, writer, told)) as written:
            async for part in written:
                if part:
                    await stream.write(part)
    await stream.close()


async def _chunks(
    exchange: Exchange,
    ask: Ask,
    generations: Sequence[Generation],
    writer: ChatChunks,
    told: Told | None,
) -> Any:
    request_id = generations[0].request_id
    async with aclosing(generating.events(exchange, generations)) as events:
        async for _, event in events:
            if isinstance(event, Tokens):
                readable = None
                if told and event.token_ids:
                    content = await told.chat(event.token_ids, event.logprobs)
                    readable = ChunkLogprobs(content=content, refusal=None)
                yield writer.tokens(event.choice, event, readable)
            elif isinstance(event, ChoiceFinished):
                own = receipts.own(request_id, event.receipt)
                yield writer.finished(event.choice, event, told=own)
            elif isinstance(event, Finished):
                own = chunks.last([event], request_id)
                told_here = {} if writer.tells_usage else own  # in the last chunk, once
                end = b"" if ask.n > 1 else writer.finished(0, event, told=told_here)
                yield end + (writer.usage([event], own) if writer.tells_usage else b"") + DONE
