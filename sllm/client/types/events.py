"""A generation: the events of the stream, and the result of them all.

All times are seconds.
"""

from dataclasses import dataclass

from sllm.client.types.chats import ToolCall
from sllm.client.types.enums import FinishReason, LoadPhase, MigrationReason, MoveWay, Tier
from sllm.client.types.receipts import Receipt


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a checkpoint, or the start of an instance, has come."""

    phase: LoadPhase
    """What is being done now."""
    from_tier: Tier | None
    """The tier that bytes are read from in this phase, if any are."""
    loaded_bytes: int
    """Bytes of this phase that have arrived."""
    total_bytes: int
    """Bytes of this phase altogether."""
    estimated_remaining: float | None
    """Seconds until the instance is ready, if known."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that a generation took and gave."""

    prompt_tokens: int
    """Tokens of the prompt."""
    completion_tokens: int
    """Tokens generated."""
    cached_prompt_tokens: int
    """Prompt tokens whose cache entries were found and not computed again."""


@dataclass(frozen=True, slots=True)
class TopLogprob:
    """One of the likeliest tokens at a position."""

    token_id: int
    """Id in the model's vocabulary."""
    logprob: float
    """Natural logarithm of its probability before temperature and filters."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """How likely the token drawn at a position was, and its likeliest alternatives."""

    logprob: float
    """Natural logarithm of the probability before temperature and filters."""
    top: tuple[TopLogprob, ...]
    """The likeliest tokens, likeliest first, as many as the request asked for."""


@dataclass(frozen=True, slots=True)
class PromptLogprob:
    """How likely a token of the prompt was after those before it, and what else was likely."""

    token_id: int
    """Id in the model's vocabulary."""
    logprob: float | None
    """Natural logarithm of the probability. None: it is the first."""
    top: tuple[TopLogprob, ...]
    """The likeliest tokens, likeliest first, as many as the request asked for."""


@dataclass(frozen=True, slots=True)
class Queued:
    """The router holds the request."""

    sequence: int
    """Position in the stream, from 0, without gaps."""
    position: int
    """Requests of the same deployment ahead of it."""
    estimated_wait: float | None
    """Seconds, if known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading(Progress):
    """An instance is starting for the request."""

    sequence: int
    """Position in the stream, from 0, without gaps."""


@dataclass(frozen=True, slots=True)
class Started:
    """An instance has taken the request."""

    sequence: int
    """Position in the stream, from 0, without gaps."""
    instance_id: str
    """The instance."""
    node_id: str
    """The node that it runs on."""
    prompt_tokens: int
    """Tokens of the prompt."""
    request_id: str
    """Id by which the request can be cancelled. Of several samples each has its own, by which it
    can be migrated; to cancel one ends all."""
    choice: int = 0
    """Which of several samples it is."""


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """How likely the tokens of a part of the prompt were. All come before the first `Tokens`."""

    sequence: int
    """Position in the stream, from 0, without gaps."""
    first_index: int
    """Index in the prompt of the first of `tokens`."""
    tokens: tuple[PromptLogprob, ...]
    """In their order."""


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """What a call of a tool has grown by."""

    index: int
    """Which of the calls of this generation, from 0."""
    id: str
    """Names the call, for its result to say whose it is. Empty but with its first delta."""
    name: str
    """Of the tool. Empty but with the call's first delta."""
    arguments: str
    """Those of all deltas together are a JSON object, if the model has written one."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """The generation has grown."""

    sequence: int
    """Position in the stream, from 0, without gaps."""
    first_index: int
    """Index in the generation of the first of `token_ids`."""
    token_ids: tuple[int, ...]
    """Ids in the model's vocabulary."""
    text: str
    """What the text has grown by. It may lag behind the tokens: within a UTF-8 character, and
    while it could still become a stop string."""
    logprobs: tuple[TokenLogprob, ...]
    """One for each of `token_ids`, if the request asked."""
    reasoning: str = ""
    """What the model's thoughts have grown by, where the deployment has a `reasoning_parser`."""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    """What calls of tools have grown by, where they are due or it has a `tool_parser`."""
    choice: int = 0
    """Which of several samples has grown."""


@dataclass(frozen=True, slots=True)
class CacheMove:
    """By which way a KV cache has come to where its generation goes on, and why so."""

    way: MoveWay
    """Of the first round, which has most of it."""
    by_tokens: float | None = None
    """Seconds that computing it was expected to take. None: that was not known yet."""
    by_pages: float | None = None
    """Seconds that it was expected to take with pages. None: that was not known yet, or there were
    none to be had."""
    page_tokens: int = 0
    """Tokens that the destination had not to compute, since it had pages of them."""
    page_bytes: int = 0
    """Pages that have come from the other node."""
    took: float = 0.0
    """Seconds of the first round."""
    why: str = ""
    """Why it has come so, in words."""


@dataclass(frozen=True, slots=True)
class Migrated:
    """Another instance goes on with the generation. No token is lost, and none comes twice."""

    sequence: int
    """Position in the stream, from 0, without gaps."""
    from_node_id: str
    """The node that it was on."""
    to_node_id: str
    """The node that it is on now; the same, if another instance there has gone on."""
    to_instance_id: str
    """The instance that has gone on."""
    pause: float
    """Seconds between the last token from there and the first one from here."""
    reason: MigrationReason
    """Why it has gone on elsewhere."""
    choice: int = 0
    """Which of several samples has."""
    cache: CacheMove | None = None
    """How its KV cache has come. None: it was computed anew, after a failure."""


@dataclass(frozen=True, slots=True)
class ChoiceFinished:
    """One of several samples has ended."""

    sequence: int
    """Position in the stream, from 0, without gaps."""
    choice: int
    """Which, from 0."""
    reason: FinishReason
    """Why it ended."""
    usage: Usage
    """Tokens that it took and gave."""
    receipt: Receipt
    """Where the time to its first token went."""
    stop: str | None
    """The stop string that was met, if one was."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The generation has ended. Always the last event.

    Of several samples `reason` and `stop` are those of the first, `usage` counts the prompt once
    and the tokens of all, and `receipt` is of the one whose first token came first.
    """

    sequence: int
    """Position in the stream, from 0, without gaps."""
    reason: FinishReason
    """Why it ended."""
    usage: Usage
    """Tokens taken and given."""
    receipt: Receipt
    """Where the time to the first token went."""
    stop: str | None
    """The stop string that was met, if one was."""


Event = Queued | Loading | Started | PromptLogprobs | Tokens | Migrated | ChoiceFinished | Finished
"""What a stream yields."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One sample of a prompt."""

    text: str
    """The text generated, without the prompt."""
    token_ids: tuple[int, ...]
    """The tokens generated."""
    logprobs: tuple[TokenLogprob, ...] | None
    """One for each of `token_ids`. None: the request did not ask."""
    finish_reason: FinishReason
    """Why it ended."""
    stop: str | None
    """The stop string that was met, if one was."""
    reasoning: str = ""
    """What the model has thought, where the deployment has a `reasoning_parser`."""
    tool_calls: tuple[ToolCall, ...] = ()
    """What it has called, where that was due or there is a `tool_parser`: as the next message may
    have them."""


@dataclass(frozen=True, slots=True)
class Result:
    """A whole generation. Of several samples, what is not of all of them is of the first."""

    request_id: str
    """Id of the request."""
    text: str
    """The text generated, without the prompt."""
    token_ids: tuple[int, ...]
    """The tokens generated."""
    logprobs: tuple[TokenLogprob, ...] | None
    """One for each of `token_ids`. None: the request did not ask."""
    finish_reason: FinishReason
    """Why it ended."""
    stop: str | None
    """The stop string that was met, if one was."""
    usage: Usage
    """Tokens taken and given."""
    receipt: Receipt
    """Where the time to the first token went."""
    migrations: tuple[Migrated, ...] = ()
    """Its moves from one instance to another, in their order."""
    reasoning: str = ""
    """What the model has thought, where the deployment has a `reasoning_parser`."""
    tool_calls: tuple[ToolCall, ...] = ()
    """What it has called, where that was due or there is a `tool_parser`: as the next message may
    have them."""
    choices: tuple[Choice, ...] = ()
    """Every sample, in order of its seed: one, or as many as `n`."""
    prompt_logprobs: tuple[PromptLogprob, ...] | None = None
    """One for each token of the prompt. None: the request did not ask."""
