"""vLLM's parsers of tool calls and thoughts, one pair for a deployment."""

import json
from contextlib import suppress
from dataclasses import replace
from typing import Any

import structlog
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.parser.parser_manager import ParserManager
from vllm.reasoning import ReasoningParserManager
from vllm.tokenizers.hf import get_cached_tokenizer
from vllm.tool_parsers import ToolParserManager

from sllm.chat.calls import call_id
from sllm.chat.conversation import Tool, ToolChoiceMode, json_object
from sllm.errors import InvalidPrompt, UnsupportedModel
from sllm.node.worker.messages import ParserNames
from sllm.node.worker.model.parsing import OutputParser, Parsed, Parsing, ToolCallDelta
from sllm.node.worker.model.refusing import sentence

log = structlog.get_logger()


def import_parsers() -> None:
    """Imports what there is, for starts to find it; what does not work here is refused by name."""
    for names, find in (
        (ToolParserManager.list_registered(), ToolParserManager.get_tool_parser),
        (ReasoningParserManager.list_registered(), ReasoningParserManager.get_reasoning_parser),
    ):
        for name in names:
            with suppress(Exception):
                find(name)


class VllmParsers:
    """See `Parsers`."""

    def __init__(self, names: ParserNames, tokenizer: Any) -> None:
        """Finds them.

        Raises:
            UnsupportedModel: vLLM has no such parser, or it has no use for the tokenizer.
        """
        # They ask for its vocabulary with each answer, which takes 70 ms with 150,000 tokens.
        self._tokenizer: Any = get_cached_tokenizer(tokenizer)
        self._composed = _composed(names, self._tokenizer)

    def begin(
        self,
        parsing: Parsing,
        prompt: tuple[int, ...],
        request_id: str,
        *,
        skips_special_tokens: bool,
    ) -> OutputParser:
        """See `Parsers.begin`."""
        try:
            request = _request(parsing, skips_special_tokens=skips_special_tokens)
            parser = self._composed(
                self._tokenizer,
                request.tools,
                chat_template_kwargs=json_object(parsing.arguments, "template_arguments"),
            )
            request = parser.adjust_request(request)
        except Exception as error:  # what pydantic and the parsers refuse, in every way
            raise InvalidPrompt(
                f"the deployment's parsers do not take this conversation: {sentence(error)}"
            ) from error
        return VllmParser(parser, request, list(prompt), request_id)


class VllmParser:
    """See `OutputParser`."""

    def __init__(self, parser: Any, request: Any, prompt: list[int], request_id: str) -> None:
        self.skips_special_tokens: bool = request.skip_special_tokens
        self._raw: list[str] = []
        self._said: list[str] = []
        self._has_thought = self._has_called = False
        self._parser = parser
        self._request = request
        self._prompt = prompt
        self._request_id = request_id
        self._broken = False

    def push(self, text: str, token_id: int, *, finished: bool) -> Parsed:
        """See `OutputParser.push`. What began like a call and is none is text in the end."""
        self._raw.append(text)
        parsed = self._parse(text, token_id, finished=finished)
        self._said.append(parsed.text)
        self._has_thought |= bool(parsed.reasoning)
        self._has_called |= bool(parsed.tool_calls)
        if finished and not self._has_called:
            return replace(parsed, text=parsed.text + self._kept_back())
        return parsed

    def _kept_back(self) -> str:
        """What the parser has not given out of what is no thought."""
        raw, said = "".join(self._raw), "".join(self._said)
        reasoning = self._parser.reasoning_parser
        end = reasoning.reasoning_end_str if reasoning else None
        if end and end in raw:
            raw = raw.partition(end)[2]
        elif self._has_thought:
            return ""
        for text in (raw, raw.lstrip()):  # blanks after thoughts are left out by some
            if text.startswith(said):
                return text[len(said) :]
        return ""

    def _parse(self, text: str, token_id: int, *, finished: bool) -> Parsed:
        if self._broken:
            return Parsed(text)
        try:
            delta = self._parser.parse_delta(
                text, [token_id], self._request, self._prompt, finished=finished
            )
        except Exception as error:  # a model may write anything
            log.warning("worker.not_parsed", request=self._request_id, problem=repr(error))
            self._broken = True
            return Parsed(text)
        if delta is None:
            return Parsed()
        calls = tuple(map(self._call, delta.tool_calls or ()))
        return Parsed(delta.content or "", delta.reasoning or "", calls)

    def _call(self, call: Any) -> ToolCallDelta:
        function = call.function
        return ToolCallDelta(
            index=call.index,
            # Not vLLM's own, which is another one wherever the tokens are parsed again.
            call_id=call_id(self._request_id, call.index) if call.id else "",
            name=(function and function.name) or "",
            arguments=(function and function.arguments) or "",
        )


def _composed(names: ParserNames, tokenizer: Any) -> Any:
    _check_known(names.tool, ToolParserManager.list_registered(), "tool")
    _check_known(names.reasoning, ReasoningParserManager.list_registered(), "reasoning")
    try:
        return ParserManager.get_parser(
            names.tool or None, names.reasoning or None, enable_auto_tools=True, tokenizer=tokenizer
        )
    except Exception as error:
        named = " and ".join(filter(None, (names.tool, names.reasoning)))
        raise UnsupportedModel(
            f"{named} cannot take answers of this model apart: {sentence(error.__cause__ or error)}"
        ) from error


def _check_known(name: str, known: list[str], kind: str) -> None:
    if name and name not in known:
        raise UnsupportedModel(
            f"vLLM has no {kind}_parser {name!r:.80}; it has {', '.join(sorted(known))}"
        )


def _request(parsing: Parsing, *, skips_special_tokens: bool) -> Any:
    """As OpenAI's API would have it: what the parsers know."""
    may_call = parsing.tools and parsing.choice.mode is not ToolChoiceMode.NONE
    return ChatCompletionRequest(
        messages=[{"role": "user", "content": ""}],
        tools=[_tool(tool) for tool in parsing.tools] or None,
        tool_choice="auto" if may_call else "none",
        chat_template_kwargs=json_object(parsing.arguments, "template_arguments"),
        skip_special_tokens=skips_special_tokens,
    )


def _tool(tool: Tool) -> dict[str, Any]:
    parameters = json.loads(tool.parameters) if tool.parameters else {}
    function = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return {"type": "function", "function": function}
