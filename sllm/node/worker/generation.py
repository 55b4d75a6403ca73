"""One request in a worker, from its tokens' coming out of the engine to what its caller sees."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from sllm.errors import SllmError
from sllm.node.worker.engine.interface import (
    FinishReason,
    NewToken,
    PromptLogprobs,
    TokenGrammar,
    TokenLogprob,
)
from sllm.node.worker.model.parsing import OutputParser, Parsed, Parsing, ToolCallDelta, joined
from sllm.node.worker.model.prompts import Prompt
from sllm.node.worker.model.text import TextDelta, TextStream, Vocabulary
from sllm.node.worker.page_messages import NO_TOKENS, KeptTokens
from sllm.prompt_prefixes import NAMELESS, Prefixes
from sllm.sampling import Sampling
from sllm.structured_output.form import Form

_ENTRIES_OF_PART: Final = 4096
"""Logprobs in one message: some 50 kB, and ten milliseconds to make."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What a caller asks for."""

    request_id: str
    prompt: Prompt
    sampling: Sampling
    stop: tuple[str, ...]
    """The text ends before the first of these to appear."""
    stop_token_ids: frozenset[int]
    max_tokens: int | None
    """None: as many as the context leaves."""
    ignore_eos: bool
    logprobs: int | None
    """How many alternatives to give for every token. None: no logprobs at all."""
    prompt_logprobs: int | None = None
    """The same of the prompt's tokens, before the first that is generated."""
    generated: tuple[int, ...] = ()
    """Tokens of the generation that were given out before, elsewhere."""
    include_stop: bool = False
    """Whether the text ends behind the stop string or stop token, and not before it."""
    skip_special_tokens: bool = True
    """Whether special tokens are no part of the text."""
    form: Form | None = None
    """That the text has. None: any will do."""
    parsing: Parsing | None = None
    """How the text is taken apart, if the deployment has parsers. None: it is not."""
    gives_way: bool = False
    """Whether all others come before it; see `EngineRequest.gives_way`."""
    background: bool = False
    """Whether nobody waits for it; see `EngineRequest.background`."""
    adapter_id: str = ""
    """Of the adapter that it is for. Empty: the model as it is."""
    prefixes: Prefixes = NAMELESS
    """Names of what the prompt begins with."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """The engine has taken the request."""

    prompt: tuple[int, ...]
    """Token ids."""


@dataclass(frozen=True, slots=True, eq=False)
class PromptPart:
    """How likely the tokens of a part of the prompt were."""

    first_index: int
    """Index in the prompt of the first of token_ids."""
    token_ids: tuple[int, ...]
    logprobs: PromptLogprobs
    """Of all the prompt."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """What the generation has grown by."""

    first_index: int
    """Index in the generation of the first of token_ids."""
    token_ids: tuple[int, ...]
    text: str
    """It may lag behind the tokens."""
    logprobs: tuple[TokenLogprob, ...]
    """One for each of token_ids, if the request asked."""
    reasoning: str = ""
    """What thoughts have grown by, where they are told apart."""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    """What calls of tools have grown by, the same."""
    seconds: float = field(default=0.0, compare=False)
    """Since the token before them, of which the first one here has none."""

    def joined(self, later: "Tokens") -> "Tokens":
        """These tokens and those that follow them."""
        return Tokens(
            self.first_index,
            self.token_ids + later.token_ids,
            self.text + later.text,
            self.logprobs + later.logprobs,
            self.reasoning + later.reasoning,
            joined(self.tool_calls, later.tool_calls),
            self.seconds + later.seconds,
        )


@dataclass(frozen=True, slots=True)
class Usage:
    """What a generation took."""

    prompt_tokens: int
    completion_tokens: int
    cached_prompt_tokens: int
    """Prompt tokens whose cache entries were found and not computed again."""
    kept: KeptTokens = NO_TOKENS
    """Of these, those whose pages were kept on the node."""


@dataclass(frozen=True, slots=True)
class Completed:
    """The end of a generation, with the tokens of its last step."""

    tokens: Tokens
    reason: FinishReason
    usage: Usage
    stop: str | None
    """The stop string that was met, if one was."""
    first_token_seconds: float
    """From the worker's taking the request to its first token."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The end of a request that cannot be gone on with."""

    error: SllmError


Event = Accepted | PromptPart | Tokens | Completed | Failed


@dataclass(frozen=True, slots=True)
class Output:
    """An event of one request."""

    request_id: str
    event: Event


def prompt_parts(prompt: tuple[int, ...], logprobs: PromptLogprobs) -> Iterator[PromptPart]:
    """A prompt in parts that make messages of a moderate size."""
    alternatives = logprobs.top_ids.shape[-1]
    size = max(1, _ENTRIES_OF_PART // (1 + alternatives))
    for first in range(0, len(prompt), size):
        yield PromptPart(first, prompt[first : first + size], logprobs)


class Generation:
    """Follows one request's tokens.

    All that it knows follows from the request and the tokens so far. So it goes on anywhere: the
    text of tokens that were given out before is made again, and not given out.
    """

    def __init__(
        self,
        request: GenerationRequest,
        prompt_tokens: int,
        vocabulary: Vocabulary,
        taken_at: float,
        grammar: TokenGrammar | None = None,
        parser: OutputParser | None = None,
    ) -> None:
        """Begins after the tokens that were given out before.

        Args:
            request: as its caller sent it.
            prompt_tokens: how many there are.
            vocabulary: of the model.
            taken_at: when the worker took the request, by its clock.
            grammar: what the engine follows the text's form by.
            parser: takes the text apart. None: it stays whole.
        """
        self.kept = NO_TOKENS
        """Tokens of the prompt whose pages were brought for it."""
        self._taken_at = taken_at
        self._grammar = grammar
        self._parser = parser
        self._has_called = False
        self._last_token: int | None = None
        self._first_token_seconds: float | None = None
        self._last_token_at = 0.0
        self._prompt_tokens = prompt_tokens
        self._include_stop = request.include_stop
        self._text = TextStream(
            vocabulary,
            request.stop,
            include_stop=request.include_stop,
            skip_special_tokens=(
                parser.skips_special_tokens if parser else request.skip_special_tokens
            ),
        )
        self._count = len(request.generated)
        self._stop: str | None = None
        self._min_tokens = request.sampling.min_tokens
        for count, token_id in enumerate(request.generated, 1):
            ends = token_id in request.stop_token_ids and not request.include_stop
            push = self._text.push_end if ends else self._text.push
            delta = push(token_id, may_stop=count >= self._min_tokens)
            self._stop = delta.stop
            self._parse(delta.text, token_id, finished=False)

    @property
    def begun(self) -> bool:
        """Whether it has put out a token here."""
        return self._first_token_seconds is not None

    @property
    def problem_of_form(self) -> str:
        """Why its text cannot be gone on with in its form; empty if it can."""
        return "" if self._grammar is None else self._grammar.problem

    def ended(self, finish: FinishReason | None) -> Completed | None:
        """The end of a generation whose last token was given out before; None if it goes on.

        Args:
            finish: what the last token, or the number of tokens, makes an engine say.
        """
        finish = finish or self._end_of_form(self._count)
        may_stop = self._count >= self._min_tokens
        stop = self._stop or (self._text.finish(may_stop=may_stop).stop if finish else None)
        reason = FinishReason.STOP if stop else finish
        if reason is None:
            return None
        if self._last_token is not None:
            self._parse("", self._last_token, finished=True)  # what ends may turn out to be a call
        return self._completed(Tokens(self._count, (), "", ()), reason, stop, 0)

    def push(self, token: NewToken) -> Tokens | Completed:
        """Takes the next token; nothing is pushed after the generation is completed."""
        seconds = self._seconds_since_last()
        may_stop = self._count + 1 >= self._min_tokens
        ends = token.finish is FinishReason.STOP and not self._include_stop
        push = self._text.push_end if ends else self._text.push
        delta = push(token.token_id, may_stop=may_stop)
        finish = token.finish or self._end_of_form(self._count + 1)
        if finish and not delta.stop:
            rest = self._text.finish(may_stop=may_stop)
            delta = TextDelta(delta.text + rest.text, rest.stop)
        reason = FinishReason.STOP if delta.stop else finish
        parsed = self._parse(delta.text, token.token_id, finished=reason is not None)
        tokens = Tokens(
            first_index=self._count,
            token_ids=(token.token_id,),
            text=parsed.text,
            logprobs=(token.logprob,) if token.logprob else (),
            reasoning=parsed.reasoning,
            tool_calls=parsed.tool_calls,
            seconds=seconds,
        )
        self._count += 1
        if reason is None:
            return tokens
        return self._completed(tokens, reason, delta.stop, token.cached_prompt_tokens)

    def _seconds_since_last(self) -> float:
        now = time.monotonic()
        seconds = now - self._last_token_at if self.begun else 0.0
        if self._first_token_seconds is None:
            self._first_token_seconds = now - self._taken_at
        self._last_token_at = now
        return seconds

    def _parse(self, text: str, token_id: int, *, finished: bool) -> Parsed:
        if self._parser is None:
            return Parsed(text)
        parsed = self._parser.push(text, token_id, finished=finished)
        self._has_called |= bool(parsed.tool_calls)
        self._last_token = token_id
        return parsed

    def _end_of_form(self, count: int) -> FinishReason | None:
        """Whether nothing may follow so many tokens, which engines do not see."""
        ended = self._grammar is not None and self._grammar.ends_after == count
        return FinishReason.STOP if ended else None

    def _completed(
        self, tokens: Tokens, reason: FinishReason, stop: str | None, cached: int
    ) -> Completed:
        if self._has_called and reason is FinishReason.STOP:
            reason = FinishReason.TOOL_CALLS
        # The engine does not know where the prompt ends if it went on with a generation.
        cached = min(cached, self._prompt_tokens)
        usage = Usage(self._prompt_tokens, self._count, cached, self.kept.up_to(cached))
        return Completed(tokens, reason, usage, stop, self._first_token_seconds or 0.0)
