"""What a worker asks of an inference engine, whichever it is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol

import torch

from sllm.node.worker.engine.adapters import Adapter
from sllm.node.worker.engine.pages import EnginePages
from sllm.sampling import Sampling


class FinishReason(IntEnum):
    """Why a generation ended; the numbers are those of the protocol."""

    STOP = 1
    """The model ended its text, or a stop string or stop token was met."""
    LENGTH = 2
    """As many tokens as were allowed."""
    TOOL_CALLS = 3
    """As STOP, and the model has called tools: no engine knows."""


class TokenGrammar(Protocol):
    """The form that a request's text has. The engine's thread follows its tokens."""

    @property
    def ends_after(self) -> int | None:
        """Tokens of the whole generation after which nothing may follow. None: not so far."""
        ...

    @property
    def problem(self) -> str:
        """Why nothing may come any more though the text has not ended; empty otherwise."""
        ...

    def allowed(self) -> torch.Tensor | None:
        """Which tokens may come next: bool [vocabulary], on the CPU. None: the text has ended."""
        ...

    def take(self, token_id: int) -> None:
        """Notes the next token."""
        ...


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """A generation, as an engine sees it: tokens in, tokens out."""

    request_id: str
    prompt: tuple[int, ...]
    """Token ids, at least one. Of a generation that goes on, its tokens so far as well."""
    sampling: Sampling
    """With its seed set."""
    max_tokens: int
    """At least 1. Prompt and generation together fit the engine's context."""
    stop_token_ids: frozenset[int] = frozenset()
    """Each of them ends the generation, and is its last token."""
    logprobs: int | None = None
    """How many alternatives to give for every token. None: no logprobs at all."""
    prompt_logprobs: int | None = None
    """The same of the prompt's tokens: all of them are computed then, whatever the cache has. None
    where the prompt ends with tokens of the generation."""
    first_position: int = 0
    """Index in the generation of the first token to draw: the prompt ends with this many tokens
    that an earlier engine has drawn."""
    forbidden: tuple[tuple[int, ...], ...] = ()
    """Sequences of tokens that are not to be in the generation, none of them empty."""
    grammar: TokenGrammar | None = None
    """After the tokens that were generated elsewhere. None: any text will do."""
    gives_way: bool = False
    """Whether it waits while prompts of others are computed, and takes a small part of each step
    in which others generate: it is computed ahead, and nobody waits for its tokens. It ends with
    its first one, and leaves what it has computed in the cache."""
    background: bool = False
    """Whether it stands still while others are computed up to their first token."""
    adapter: Adapter | None = None
    """What is added to the model for it. Held until it has ended, and no longer."""
    images: tuple[Any, ...] = ()
    """That the prompt has places for, in the engine's own form."""


@dataclass(frozen=True, slots=True)
class TopLogprob:
    """One of the likeliest tokens at a position."""

    token_id: int
    logprob: float
    """As of `TokenLogprob`."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural logarithms of probabilities before temperature and filters."""

    logprob: float
    """Of the token drawn."""
    top: tuple[TopLogprob, ...]
    """The likeliest tokens, likeliest first."""


@dataclass(frozen=True, slots=True, eq=False)
class PromptLogprobs:
    """Of the tokens of a prompt but the first, each after those before it; on the CPU."""

    logprobs: torch.Tensor
    """Natural logarithms of their probabilities, float32 [tokens - 1]."""
    top_ids: torch.Tensor
    """The likeliest in their places, likeliest first, integers [tokens - 1, alternatives]."""
    top_logprobs: torch.Tensor
    """Of these, float32 [tokens - 1, alternatives]."""


@dataclass(frozen=True, slots=True)
class NewToken:
    """What one step gave one request."""

    request_id: str
    token_id: int
    logprob: TokenLogprob | None
    finish: FinishReason | None
    """None: the generation goes on."""
    cached_prompt_tokens: int
    """Prompt tokens whose cache entries were found and not computed again."""
    prompt: PromptLogprobs | None = None
    """With the first token, if the request has asked."""


@dataclass(frozen=True, slots=True)
class Counters:
    """What an engine has done since its start, and has to do."""

    steps: int = 0
    """Forward passes."""
    generated_tokens: int = 0
    running_requests: int = 0
    """Requests that hold a part of the cache."""
    waiting_requests: int = 0
    """Requests that wait for a part of it."""
    cancelled_requests: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """The outcome of one step. Cancelled requests are not named any more."""

    tokens: tuple[NewToken, ...]
    """In no particular order, at most one for each request. Empty: only counters changed."""
    counters: Counters
    broken: tuple[str, ...] = ()
    """Requests that have ended because the model gave no numbers to draw a token by."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """How much an engine may take on."""

    kv_tokens: int
    """Tokens that the KV cache holds."""
    max_requests: int
    """Requests in one step; more wait."""
    takes_adapters: bool = False
    """Whether requests may have adapters."""
    more_kv_tokens: int = 0
    """Tokens beyond `kv_tokens` that the cache may be resized to. 0: its size is fixed."""
    least_kv_tokens: int = 0
    """That it is to hold however it is resized: those of one request."""

    @property
    def pool_tokens(self) -> int:
        """Tokens that the cache has addresses for."""
        return self.kv_tokens + self.more_kv_tokens


class Engine(Protocol):
    """Generates tokens for many requests at once, in a thread of its own.

    `start` returns once the engine is ready for requests. `submit` and `cancel` return at once
    and may be called from any thread. `on_step` and `on_failure` are called in the engine's
    thread, in the order of the steps, and must return quickly. A failure ends the engine and all
    its requests; nothing is called after it, nor once `stop` has returned.
    """

    @property
    def counters(self) -> Counters:
        """As of the latest step."""
        ...

    @property
    def pages(self) -> EnginePages | None:
        """Of its KV cache, once it has been started. None: they cannot leave it."""
        ...

    @property
    def adapted_layers(self) -> Mapping[str, tuple[int, int]]:
        """Inputs and outputs of the layers that adapters may add to, once it has been started."""
        ...

    def start(
        self, on_step: Callable[[Step], None], on_failure: Callable[[Exception], None]
    ) -> None:
        """Allocates the KV cache and begins to run.

        Raises:
            NoCapacity: There is no memory for the cache.
        """
        ...

    def submit(self, request: EngineRequest) -> None:
        """Takes a request, whose id is not in use; its tokens come through `on_step`."""
        ...

    def cancel(self, request_id: str) -> None:
        """Ends a request before the next step; one that is not there has ended."""
        ...

    def finish(self, request_id: str) -> None:
        """The same for a request that has got all it wanted: it does not count as cancelled."""
        ...

    def stop(self) -> None:
        """Ends the engine with all its requests, and returns when it is done."""
        ...
