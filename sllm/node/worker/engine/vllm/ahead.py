"""Requests that give way: computed in parts, when no other's prompt waits.

vLLM computes the prompts that it has begun before those that have come since, each with as much of
a step as is free. So a request that gives way goes into the core as one for the beginning of its
prompt, then for a little more, and so on: what the last has computed is found in the cache.
"""

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from sllm.node.worker.engine.vllm.batch import Running

_AHEAD_TOKENS = 32
"""Tokens of those that give way in a step in which others generate: each adds to their wait. A
whole page, so that all of them are found in the cache."""


class Part(NamedTuple):
    """What is to be computed next."""

    running: Running
    end: int
    """Tokens of the prompt, from its beginning."""


class Ahead:
    """The requests that give way, in the order of their coming. One part is under way at a time."""

    def __init__(self, step_tokens: int) -> None:
        """Nothing waits.

        Args:
            step_tokens: the most in one step.
        """
        self._step_tokens = step_tokens
        self._waiting: deque[Running] = deque()

    def __len__(self) -> int:
        return sum(not running.key for running in self._waiting)

    def add(self, running: Running) -> None:
        """Takes a request."""
        self._waiting.append(running)

    def drop(self, running: Running) -> None:
        """Forgets a request; one that is not there has ended."""
        if running in self._waiting:
            self._waiting.remove(running)

    def next_part(self, in_core: Iterable[Running]) -> Part | None:
        """What may be computed in the next step, beside the requests that are under way."""
        others = list(in_core)
        if not self._waiting or any(one.request.gives_way or not one.generated for one in others):
            return None
        running = self._waiting[0]
        size = _AHEAD_TOKENS if others else self._step_tokens
        return Part(running, min(running.computed + size, len(running.request.prompt)))
