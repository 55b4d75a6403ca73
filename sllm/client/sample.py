"""What a stream has said of one sample, and the checks that nothing of it is missing."""

from collections.abc import Sequence

from sllm import errors
from sllm.client.types.chats import ToolCall
from sllm.client.types.events import (
    Choice,
    ChoiceFinished,
    Finished,
    TokenLogprob,
    Tokens,
    ToolCallDelta,
)


class Sample:
    """Takes the tokens of one sample in order, and gives the whole of them."""

    def __init__(self, request_id: str, *, wants_logprobs: bool) -> None:
        self.token_ids: list[int] = []
        """The tokens so far."""
        self._request_id = request_id
        self._wants_logprobs = wants_logprobs
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: dict[int, list[ToolCallDelta]] = {}
        """What each call has grown by, by its index."""
        self._logprobs: list[TokenLogprob] = []

    def add(self, tokens: Tokens) -> None:
        """Takes what comes next.

        Raises:
            errors.Internal: Tokens before it are missing.
        """
        if tokens.first_index != len(self.token_ids):
            raise errors.Internal(
                f"request {self._request_id} lost tokens: {tokens.first_index} came where "
                f"{len(self.token_ids)} was due. Send the request again"
            )
        self._text.append(tokens.text)
        self._reasoning.append(tokens.reasoning)
        for delta in tokens.tool_calls:
            self._calls.setdefault(delta.index, []).append(delta)
        self.token_ids += tokens.token_ids
        self._logprobs += tokens.logprobs

    def choice(self, end: Finished | ChoiceFinished) -> Choice:
        """All of it."""
        return Choice(
            text="".join(self._text),
            token_ids=tuple(self.token_ids),
            logprobs=tuple(self._logprobs) if self._wants_logprobs else None,
            finish_reason=end.reason,
            stop=end.stop,
            reasoning="".join(self._reasoning),
            tool_calls=tuple(_call(self._calls[index]) for index in sorted(self._calls)),
        )


def _call(deltas: Sequence[ToolCallDelta]) -> ToolCall:
    arguments = "".join(one.arguments for one in deltas)
    name = next((one.name for one in deltas if one.name), "")
    call_id = next((one.id for one in deltas if one.id), "")
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
