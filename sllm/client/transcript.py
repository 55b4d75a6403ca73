"""What a stream has said so far, and the checks that nothing of it is missing."""

from collections.abc import Sequence

from sllm import errors
from sllm.client.types.events import (
    Event,
    Finished,
    Migrated,
    Result,
    TokenLogprob,
    Tokens,
    ToolCall,
    ToolCallDelta,
)


class Transcript:
    """Takes a generation's events in order, and gives the result of them all."""

    def __init__(self, request_id: str, *, wants_logprobs: bool) -> None:
        self._request_id = request_id
        self._wants_logprobs = wants_logprobs
        self._next_sequence = 0
        self._text: list[str] = []
        self._token_ids: list[int] = []
        self._reasoning: list[str] = []
        self._calls: dict[int, list[ToolCallDelta]] = {}
        """What each call has grown by, by its index."""
        self._logprobs: list[TokenLogprob] = []
        self._migrations: list[Migrated] = []
        self._finished: Finished | None = None

    @property
    def next_sequence(self) -> int:
        """The number of the first message that is not there yet."""
        return self._next_sequence

    @property
    def token_ids(self) -> Sequence[int]:
        """The tokens so far."""
        return self._token_ids

    def expect(self, sequence: int) -> None:
        """Takes note of a message's place in the stream.

        Raises:
            errors.Internal: It is not the one after the last.
        """
        if sequence != self._next_sequence:
            raise errors.Internal(
                f"request {self._request_id} lost a part of its stream: message {sequence} came "
                f"where {self._next_sequence} was due. Send the request again"
            )
        self._next_sequence += 1

    def add(self, event: Event) -> None:
        """Takes the next event.

        Raises:
            errors.Internal: Tokens before it are missing.
        """
        if isinstance(event, Tokens):
            self._add_tokens(event)
        elif isinstance(event, Migrated):
            self._migrations.append(event)
        elif isinstance(event, Finished):
            self._finished = event

    def _add_tokens(self, tokens: Tokens) -> None:
        if tokens.first_index != len(self._token_ids):
            raise errors.Internal(
                f"request {self._request_id} lost tokens: {tokens.first_index} came where "
                f"{len(self._token_ids)} was due. Send the request again"
            )
        self._text.append(tokens.text)
        self._reasoning.append(tokens.reasoning)
        for delta in tokens.tool_calls:
            self._calls.setdefault(delta.index, []).append(delta)
        self._token_ids += tokens.token_ids
        self._logprobs += tokens.logprobs

    def result(self) -> Result:
        """The whole generation.

        Raises:
            errors.Internal: The stream ended without saying how.
        """
        if self._finished is None:
            raise errors.Internal(f"request {self._request_id} ended without its last message")
        return Result(
            request_id=self._request_id,
            text="".join(self._text),
            token_ids=tuple(self._token_ids),
            logprobs=tuple(self._logprobs) if self._wants_logprobs else None,
            finish_reason=self._finished.reason,
            stop=self._finished.stop,
            usage=self._finished.usage,
            receipt=self._finished.receipt,
            migrations=tuple(self._migrations),
            reasoning="".join(self._reasoning),
            tool_calls=tuple(_call(self._calls[index]) for index in sorted(self._calls)),
        )


def _call(deltas: Sequence[ToolCallDelta]) -> ToolCall:
    arguments = "".join(one.arguments for one in deltas)
    name = next((one.name for one in deltas if one.name), "")
    call_id = next((one.id for one in deltas if one.id), "")
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
