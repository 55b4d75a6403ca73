"""What waits to be sent to the agent."""

import asyncio
from collections.abc import Sequence

from sllm.node.worker.engine.interface import Counters
from sllm.node.worker.generation import Output, Tokens


class Outbox:
    """Outputs in order. Tokens of a request that wait together leave together."""

    def __init__(self) -> None:
        self.counters = Counters()
        """As of the latest step that was put in."""
        self._waiting: list[Output] = []
        self._arrived = asyncio.Event()
        self._closed = False

    def put(self, outputs: Sequence[Output], counters: Counters) -> None:
        """Adds what one step, or one request, has brought."""
        self._waiting.extend(outputs)
        self.counters = counters
        self._arrived.set()

    def close(self) -> None:
        """Lets the reader end once it has taken everything."""
        self._closed = True
        self._arrived.set()

    async def take(self) -> list[Output] | None:
        """Everything that waits, once anything has come; None: there is nothing more to come."""
        await self._arrived.wait()
        if self._closed and not self._waiting:
            return None
        waiting, self._waiting = self._waiting, []
        if not self._closed:
            self._arrived.clear()
        return _join(waiting)


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
