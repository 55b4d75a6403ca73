"""Tokens that nobody reads as they come, until they are worth a message."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from sllm.node.worker.generation import Output, Tokens

COLLECT_SECONDS: Final = 0.25
"""Between two messages of a request. A message costs every process up to whoever keeps the answer
more than the tokens in it; what was not told is computed again if the request goes on elsewhere."""


@dataclass(slots=True)
class _Run:
    """What has come of a request since it began, or went on, here."""

    told: float
    """When something was told last."""
    held: Tokens | None = None


class Collecting:
    """Holds tokens back, of each request by itself.

    The first of a run is told at once, so that a request gets on however often it is disturbed.
    """

    def __init__(
        self, seconds: float = COLLECT_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Holds none; `seconds`: between two messages of a request."""
        self._seconds = seconds
        self._clock = clock
        self._runs: dict[str, _Run] = {}

    def take(self, output: Output) -> Iterator[Output]:
        """What is to be told of a request once it has come to this: perhaps nothing as yet."""
        now, run = self._clock(), self._runs.get(output.request_id)
        if not isinstance(output.event, Tokens):
            if run and run.held:
                yield Output(output.request_id, run.held)
                run.held = None
            yield output
        elif run is None:
            self._runs[output.request_id] = _Run(now)
            yield output
        else:
            run.held = run.held.joined(output.event) if run.held else output.event
            if now - run.told >= self._seconds:
                yield Output(output.request_id, run.held)
                run.told, run.held = now, None

    def forget(self, request_id: str) -> None:
        """Nothing more comes of a request, nor is told."""
        self._runs.pop(request_id, None)
