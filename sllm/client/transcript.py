"""What a stream has said so far, and the checks that nothing of it is missing."""

from collections.abc import Sequence

from sllm import errors
from sllm.client.sample import Sample
from sllm.client.types.events import (
    Choice,
    ChoiceFinished,
    Event,
    Finished,
    Migrated,
    PromptLogprob,
    PromptLogprobs,
    Result,
    Tokens,
)


class Transcript:
    """Takes a generation's events in order, and gives the result of them all."""

    def __init__(
        self,
        request_id: str,
        *,
        wants_logprobs: bool,
        wants_prompt: bool = False,
        n: int = 1,
    ) -> None:
        """Of a request for `n` samples, and whether it asks for logprobs, and for the prompt's."""
        self._request_id = request_id
        self._next_sequence = 0
        self._wants_logprobs = wants_logprobs
        self._n = n
        self._samples: dict[int, Sample] = {}
        """Those that have begun, by choice: nobody knows yet whether so many may be asked for."""
        self._ends: dict[int, ChoiceFinished] = {}
        """Of several samples, by choice."""
        self._prompt: list[PromptLogprob] | None = [] if wants_prompt else None
        self._migrations: list[Migrated] = []
        self._finished: Finished | None = None

    @property
    def next_sequence(self) -> int:
        """The number of the first message that is not there yet."""
        return self._next_sequence

    @property
    def token_ids(self) -> Sequence[Sequence[int]]:
        """The tokens of each sample so far."""
        return [self._sample(choice).token_ids for choice in range(self._n)]

    @property
    def prompt_logprobs(self) -> int:
        """Tokens of the prompt, from its beginning, whose logprobs are there."""
        return len(self._prompt or ())

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
            errors.Internal: Tokens before it are missing, or nobody asked for its sample.
        """
        if isinstance(event, Tokens):
            self._sample(event.choice).add(event)
        elif isinstance(event, PromptLogprobs):
            self._add_prompt(event)
        elif isinstance(event, Migrated):
            self._migrations.append(event)
        elif isinstance(event, ChoiceFinished):
            self._ends[event.choice] = event
        elif isinstance(event, Finished):
            self._finished = event

    def _add_prompt(self, told: PromptLogprobs) -> None:
        if self._prompt is None or told.first_index != len(self._prompt):
            raise errors.Internal(
                f"request {self._request_id} lost a part of its prompt: token {told.first_index} "
                f"came where {self.prompt_logprobs} was due. Send the request again"
            )
        self._prompt += told.tokens

    def choice(self, number: int) -> Choice:
        """One sample, once it has ended.

        Raises:
            errors.Internal: It has not.
        """
        end = self._ends.get(number) if self._n > 1 else self._finished
        if end is None:
            raise errors.Internal(f"choice {number} of {self._request_id} came without its end")
        return self._sample(number).choice(end)

    def result(self) -> Result:
        """The whole generation.

        Raises:
            errors.Internal: The stream ended without saying how.
        """
        if self._finished is None:
            raise errors.Internal(f"request {self._request_id} ended without its last message")
        choices = tuple(map(self.choice, range(self._n)))
        first = choices[0]
        return Result(
            request_id=self._request_id,
            text=first.text,
            token_ids=first.token_ids,
            logprobs=first.logprobs,
            finish_reason=self._finished.reason,
            stop=self._finished.stop,
            usage=self._finished.usage,
            receipt=self._finished.receipt,
            migrations=tuple(self._migrations),
            reasoning=first.reasoning,
            tool_calls=first.tool_calls,
            choices=choices,
            prompt_logprobs=None if self._prompt is None else tuple(self._prompt),
        )

    def _sample(self, choice: int) -> Sample:
        if not 0 <= choice < self._n:
            raise errors.Internal(f"request {self._request_id} has no choice {choice}")
        if choice not in self._samples:
            sample = Sample(self._request_id, wants_logprobs=self._wants_logprobs)
            self._samples[choice] = sample
        return self._samples[choice]
