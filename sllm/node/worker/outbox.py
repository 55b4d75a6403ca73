"""What waits to be sent to the agent."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from sllm.node.worker.engine.interface import Counters
from sllm.node.worker.generation import Output, PromptPart, Tokens

PAUSE_SECONDS: Final = 0.02
"""Between messages of tokens alone.

A message costs every process up to the caller more than the tokens in it: a small model that takes
a step each few milliseconds would have them spend more than its engine. Nobody reads so fast.
"""


_PARTS_AT_ONCE: Final = 4
"""Parts of prompts in one message: whoever makes it does nothing else meanwhile."""


class Outbox:
    """Outputs in order. Tokens of a request that wait together leave together."""

    def __init__(self, pause: float = PAUSE_SECONDS) -> None:
        """`pause`: seconds from one `take` to the next, unless something is to leave at once."""
        self.counters = Counters()
        """As of the latest step that was put in."""
        self._waiting: list[Output] = []
        self._arrived = asyncio.Event()
        self._urgent = asyncio.Event()
        self._pause = pause
        self._taken_at = 0.0
        self._closed = False

    def put(self, outputs: Sequence[Output], counters: Counters, *, at_once: bool = True) -> None:
        """Adds what one step, or one request, has brought.

        Args:
            outputs: In order.
            counters: As of now.
            at_once: Whether somebody waits for it, as for a first token or an end.
        """
        self._waiting.extend(outputs)
        self.counters = counters
        self._arrived.set()
        if at_once:
            self._urgent.set()

    def close(self) -> None:
        """Lets the reader end once it has taken everything."""
        self._closed = True
        self._arrived.set()
        self._urgent.set()

    async def take(self) -> list[Output] | None:
        """Everything that waits, once anything has come; None: there is nothing more to come."""
        await self._arrived.wait()
        await self._rest()
        if self._closed and not self._waiting:
            return None
        waiting, self._waiting = _portion(self._waiting)
        if not (self._closed or self._waiting):
            self._arrived.clear()
            self._urgent.clear()
        return _join(waiting)

    async def _rest(self) -> None:
        """Lets the pause pass, or what is left of it, unless something is to leave at once."""
        loop = asyncio.get_running_loop()
        with suppress(TimeoutError):
            async with asyncio.timeout_at(self._taken_at + self._pause):
                await self._urgent.wait()
        self._taken_at = loop.time()


def _portion(waiting: list[Output]) -> tuple[list[Output], list[Output]]:
    """What goes into the next message, with a few parts of prompts, and what stays."""
    going: list[Output] = []
    staying: list[Output] = []
    parts, held = 0, set[str]()
    for output in waiting:
        is_part = isinstance(output.event, PromptPart)
        if output.request_id in held or (is_part and parts == _PARTS_AT_ONCE):
            held.add(output.request_id)  # the order of each request's outputs stays
            staying.append(output)
        else:
            parts += is_part
            going.append(output)
    return going, staying


def _join(outputs: Sequence[Output]) -> list[Output]:
    """Joins runs of tokens of one request; the order of each request's events stays."""
    joined: list[Output] = []
    growing: dict[str, int] = {}
    for output in outputs:
        place = growing.get(output.request_id)
        if isinstance(output.event, Tokens) and place is not None:
            before = joined[place].event
            assert isinstance(before, Tokens)
            joined[place] = Output(output.request_id, before.joined(output.event))
            continue
        if isinstance(output.event, Tokens):
            growing[output.request_id] = len(joined)
        else:
            growing.pop(output.request_id, None)
        joined.append(output)
    return joined
