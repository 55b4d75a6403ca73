"""vLLM's parsers of tool calls and thoughts, one pair for a deployment."""

import json
from contextlib import suppress
from hashlib import blake2s
from typing import Any, Final

import structlog
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.parser.parser_manager import ParserManager
from vllm.reasoning import ReasoningParserManager
from vllm.tool_parsers import ToolParserManager

from sllm.chat.conversation import Tool, ToolChoice, ToolChoiceMode, json_object
from sllm.errors import InvalidPrompt, UnsupportedModel
from sllm.node.worker.messages import ParserNames
from sllm.node.worker.model.parsing import OutputParser, Parsed, Parsing, ToolCallDelta
from sllm.node.worker.model.refusing import sentence

log = structlog.get_logger()

_MODES: Final = {
    ToolChoiceMode.AUTO: "auto",
    ToolChoiceMode.NONE: "none",
    ToolChoiceMode.REQUIRED: "required",
}


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
        self._tokenizer = tokenizer
        self._whole = _composed(names.tool, names.reasoning, tokenizer)
        # What is forced is JSON from the first token on, whatever the model's own way is.
        self._forced = _composed(names.tool, "", tokenizer)
        if self._forced is not None:
            own = self._forced.tool_parser_cls
            self._forced.tool_parser_cls = type(own.__name__, (own,), {})
            self._forced.tool_parser_cls.supports_required_and_named = True

    def begin(self, parsing: Parsing, prompt: tuple[int, ...], request_id: str) -> OutputParser:
        """See `Parsers.begin`."""
        forced = parsing.choice.is_forced and self._forced is not None
        try:
            request = _request(parsing)
            parser = (self._forced if forced else self._whole)(
                self._tokenizer,
                request.tools,
                chat_template_kwargs=json_object(parsing.arguments, "template_arguments"),
            )
            skips = True if forced else parser.adjust_request(request).skip_special_tokens
        except Exception as error:  # what pydantic and the parsers refuse, in every way
            raise InvalidPrompt(
                f"the deployment's parsers do not take this conversation: {sentence(error)}"
            ) from error
        return VllmParser(parser, request, list(prompt), request_id, skips=skips)


class VllmParser:
    """See `OutputParser`."""

    def __init__(
        self, parser: Any, request: Any, prompt: list[int], request_id: str, *, skips: bool
    ) -> None:
        self.skips_special_tokens = skips
        self._parser = parser
        self._request = request
        self._prompt = prompt
        self._request_id = request_id
        self._broken = False

    def push(self, text: str, token_id: int, *, finished: bool) -> Parsed:
        """See `OutputParser.push`. What the parser fails over is text, and so is all after it."""
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
            call_id=_call_id(self._request_id, call.index) if call.id else "",
            name=(function and function.name) or "",
            arguments=(function and function.arguments) or "",
        )


def _call_id(request_id: str, index: int) -> str:
    return f"call-{blake2s(f'{request_id}/{index}'.encode(), digest_size=8).hexdigest()}"


def _composed(tool: str, reasoning: str, tokenizer: Any) -> Any:
    _check_known(tool, ToolParserManager.list_registered(), "tool")
    _check_known(reasoning, ReasoningParserManager.list_registered(), "reasoning")
    try:
        return ParserManager.get_parser(
            tool or None, reasoning or None, enable_auto_tools=True, tokenizer=tokenizer
        )
    except Exception as error:
        raise UnsupportedModel(
            f"the parsers {' and '.join(filter(None, (tool, reasoning)))} cannot be used with this "
            f"model: {sentence(error.__cause__ or error)}"
        ) from error


def _check_known(name: str, known: list[str], kind: str) -> None:
    if name and name not in known:
        raise UnsupportedModel(
            f"vLLM has no {kind}_parser {name!r:.80}; it has {', '.join(sorted(known))}"
        )


def _request(parsing: Parsing) -> Any:
    """As OpenAI's API would have it: what the parsers know."""
    return ChatCompletionRequest(
        messages=[{"role": "user", "content": ""}],
        tools=[_tool(tool) for tool in parsing.tools] or None,
        tool_choice=_choice(parsing.choice) if parsing.tools else "none",
        chat_template_kwargs=json_object(parsing.arguments, "template_arguments"),
    )


def _tool(tool: Tool) -> dict[str, Any]:
    parameters = json.loads(tool.parameters) if tool.parameters else {}
    function = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return {"type": "function", "function": function}


def _choice(choice: ToolChoice) -> Any:
    if choice.function:
        return {"type": "function", "function": {"name": choice.function}}
    return _MODES[choice.mode]
