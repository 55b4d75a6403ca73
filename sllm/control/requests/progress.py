"""How far a generation is: what it takes to go on with it on another instance, and no more."""

from collections.abc import Sequence
from typing import Final

from sllm import errors

TRIES: Final = 3
"""Instances that may fail a request at one and the same token, before its caller is told."""
TRIES_IN_ALL: Final = 12


class Progress:
    """The tokens of one request that its caller has, and how often it has failed."""

    def __init__(
        self, generated: Sequence[int] = (), identity: str = "", *, prompt_told: int = 0
    ) -> None:
        self.identity = identity
        """Of what generates it, once an instance has told it. Empty: not known."""
        self.prompt: Sequence[int] = ()
        """Token ids, once an instance has told them. Empty: they are in the request."""
        self.prompt_told = prompt_told
        """Tokens of the prompt, from its beginning, whose logprobs its caller has."""
        self.token_ids = list(generated)
        """All tokens of the generation that have been relayed."""
        self.first_token_at: float | None = None
        self.last_token_at: float | None = None
        """Clock's seconds, like the one before."""
        self._failures = 0
        self._failures_here = 0
        """Since the last token."""

    @property
    def model_identity(self) -> str:
        """Of the model alone: that of an adapter over it stands behind a plus."""
        return self.identity.partition("+")[0]

    @property
    def time_per_token(self) -> float | None:
        """Seconds between two tokens, on average. None: fewer than two have come at two times."""
        first, last, count = self.first_token_at, self.last_token_at, len(self.token_ids)
        if first is None or last is None or last <= first:
            return None
        return (last - first) / max(1, count - 1)

    def add(self, first_index: int, token_ids: Sequence[int], now: float) -> None:
        """Takes in tokens that are about to be relayed.

        Raises:
            errors.Internal: They are not those that follow.
        """
        if first_index != len(self.token_ids):
            raise errors.Internal(
                f"token {first_index} came from the node where {len(self.token_ids)} was due"
            )
        self.token_ids += token_ids
        self._failures_here = 0
        self.last_token_at = now
        if self.first_token_at is None:
            self.first_token_at = now

    def known_of_prompt(self, first_index: int, count: int) -> int:
        """How many of `count` tokens of the prompt were told before, as by another instance.

        Raises:
            errors.Internal: Tokens before them were not.
        """
        if first_index > self.prompt_told:
            raise errors.Internal(
                f"prompt token {first_index} came from the node where {self.prompt_told} was due"
            )
        known = min(count, self.prompt_told - first_index)
        self.prompt_told = max(self.prompt_told, first_index + count)
        return known

    def fail(self) -> bool:
        """Counts a failure of the instance; says whether another one may be tried."""
        self._failures += 1
        self._failures_here += 1
        return self._failures_here < TRIES and self._failures < TRIES_IN_ALL
