"""Tokens that nobody reads as they come, until they are worth a message."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from sllm.node.worker.generation import Output, Tokens

COLLECT_SECONDS: Final = 0.5
"""What of a generation would have to be computed again at most if its node were lost. A message
costs every process up to whoever keeps the answer more than the tokens in it."""


@dataclass(slots=True)
class _Held:
    since: float
    tokens: Tokens


class Collecting:
    """Holds tokens back, of each request by itself."""

    def __init__(
        self, seconds: float = COLLECT_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Holds none; `seconds`: for how long it does, while more of them come."""
        self._seconds = seconds
        self._clock = clock
        self._held: dict[str, _Held] = {}

    def take(self, output: Output) -> Iterator[Output]:
        """What is to be told of a request once it has come to this: perhaps nothing as yet."""
        if not isinstance(output.event, Tokens):
            if held := self._held.pop(output.request_id, None):
                yield Output(output.request_id, held.tokens)
            yield output
            return
        held = self._held.get(output.request_id)
        if held is None:
            self._held[output.request_id] = _Held(self._clock(), output.event)
            return
        held.tokens = held.tokens.joined(output.event)
        if self._clock() - held.since >= self._seconds:
            del self._held[output.request_id]
            yield Output(output.request_id, held.tokens)

    def forget(self, request_id: str) -> None:
        """Of a request that is given up, nothing is told."""
        self._held.pop(request_id, None)
