"""POST /v1/completions."""

import json
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from typing import Any

from openai.types import Completion, CompletionChoice
from openai.types.completion_choice import Logprobs

from sllm import ChoiceFinished, Finished, Result, Tokens
from sllm.gateway import generating, receipts, sse
from sllm.gateway.exchange import Exchange
from sllm.gateway.generating import Ask, Generation
from sllm.gateway.openai import answers, logprobs
from sllm.gateway.openai.answers import FinishReason, Head
from sllm.gateway.openai.chat import DONE
from sllm.gateway.openai.chunks import HERE, cut, last
from sllm.gateway.openai.completion_request import CompletionRequest
from sllm.gateway.openai.logprobs import Told


async def complete(exchange: Exchange) -> None:
    """Goes on with texts."""
    request, (arguments, prompts) = await exchange.fields(
        CompletionRequest, lambda one: (one.arguments(), one.prompts())
    )
    ask = Ask(request.model, arguments, prompts)
    told = None
    if request.logprobs is not None:
        told = await logprobs.told(exchange.gateway.token_texts, request.model)
    if request.stream:
        await _stream(exchange, request, ask, told)
    else:
        found = await generating.results(exchange, ask)
        timing = receipts.server_timing(found[0][1].receipt)
        answer = await completion(request.model, found, told)
        await exchange.reply(answers.encoded(answer), headers=timing)


async def completion(
    model: str, found: Sequence[tuple[str, Result]], told: Told | None
) -> Completion:
    """The answer to a request: choices of the first prompt first."""
    request_id, first = found[0]
    head = answers.head("cmpl", request_id, model)
    choices = [choice for _, result in found for choice in result.choices]
    made = []
    for index, one in enumerate(choices):
        readable = None
        if told and one.logprobs is not None:
            readable = await told.completion(one.token_ids, one.logprobs, 0)
        reason = answers.finish_reason(one.finish_reason)
        made.append(_choice(index, one.text, reason, readable))
    usage = answers.usage([result.usage for _, result in found])
    return _made(head, made, usage=usage, sllm=receipts.own(request_id, first.receipt))


class _Chunks:
    """Writes the chunks of one stream."""

    def __init__(self, head: Head, *, tells_usage: bool, told: Told | None) -> None:
        self.tells_usage = tells_usage
        self._head = head
        self._told = told
        self._cut: dict[int, tuple[bytes, bytes]] = {}
        self._letters: dict[int, int] = {}

    async def tokens(self, index: int, grown: Tokens) -> bytes:
        """What a choice has grown by."""
        if self._told and grown.token_ids:
            offset = self._letters.get(index, 0)
            self._letters[index] = offset + len(grown.text)
            readable = await self._told.completion(grown.token_ids, grown.logprobs, offset)
            return self._chunk(_choice(index, grown.text, None, readable))
        if not grown.text:
            return b""
        if index not in self._cut:
            self._cut[index] = cut(self._chunk(_choice(index, HERE, None, None)))
        before, after = self._cut[index]
        return before + json.dumps(grown.text).encode() + after

    def finished(
        self, index: int, end: Finished | ChoiceFinished, told: Mapping[str, Any]
    ) -> bytes:
        """The end of a choice."""
        reason = answers.finish_reason(end.reason)
        more = {"sllm": told} if told else {}
        return self._chunk(_choice(index, "", reason, None), **more)

    def usage(self, ends: Sequence[Finished], told: Mapping[str, Any]) -> bytes:
        """The last chunk, where usage is asked for."""
        usage = answers.usage([one.usage for one in ends])
        return sse.data(answers.encoded(_made(self._head, [], usage=usage, sllm=told)))

    def _chunk(self, choice: CompletionChoice, **more: Any) -> bytes:
        if self.tells_usage:
            more["usage"] = None
        return sse.data(answers.encoded(_made(self._head, [choice], **more)))


def _choice(
    index: int, text: str, reason: FinishReason | None, readable: Logprobs | None
) -> CompletionChoice:
    # Not validated: a part of an answer has no reason yet, which the type does not know.
    return CompletionChoice.model_construct(
        finish_reason="stop" if reason == "tool_calls" else reason,
        index=index,
        logprobs=readable,
        text=text,
    )


def _made(head: Head, choices: list[CompletionChoice], **more: Any) -> Completion:
    return Completion.model_construct(
        id=head.id,
        choices=choices,
        created=head.created,
        model=head.model,
        object="text_completion",
        **more,
    )


async def _stream(
    exchange: Exchange, request: CompletionRequest, ask: Ask, told: Told | None
) -> None:
    stream = exchange.events()
    async with generating.begun(exchange, ask) as generations:
        head = answers.head("cmpl", generations[0].request_id, request.model)
        writer = _Chunks(head, tells_usage=request.tells_usage, told=told)
        async with aclosing(_chunks(exchange, ask, generations, writer)) as written:
            async for part in written:
                if part:
                    await stream.write(part)
    await stream.close()


async def _chunks(
    exchange: Exchange, ask: Ask, generations: Sequence[Generation], writer: _Chunks
) -> Any:
    ends: list[Finished] = []
    async with aclosing(generating.events(exchange, generations)) as events:
        async for part, event in events:
            if isinstance(event, Tokens):
                yield await writer.tokens(part * ask.n + event.choice, event)
            elif isinstance(event, ChoiceFinished):
                told = receipts.own(generations[part].request_id, event.receipt)
                yield writer.finished(part * ask.n + event.choice, event, told)
            elif isinstance(event, Finished):
                ends.append(event)
                if ask.n == 1:
                    told = receipts.own(generations[part].request_id, event.receipt)
                    yield writer.finished(part, event, {} if writer.tells_usage else told)
    own = last(ends, generations[0].request_id)
    yield (writer.usage(ends, own) if writer.tells_usage else b"") + DONE
