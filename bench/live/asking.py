"""A trace's requests, sent to a real cluster at their moments, and what became of each."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import sllm
from bench.simulation.workload import Arrival

PROMPT = "The for statement is used to iterate over the elements of a sequence"
TIMEOUT_SECONDS = 90.0
"""A request that takes longer counts as one that hangs."""


@dataclass(slots=True)
class Asked:
    """One request. Moments are seconds since the trace began."""

    arrival: Arrival
    began: float
    first_token: float | None = None
    """Moment. None: it has had no token."""
    ended: float | None = None
    """Moment. None: it is under way."""
    node_ids: tuple[str, ...] = ()
    """Nodes that served it, in order: more than one if it was moved."""
    receipt: sllm.Receipt | None = None
    """None: it has not ended well."""
    error: str = ""
    """The reason of the error that it ended with. Empty: none."""

    @property
    def time_to_first_token(self) -> float | None:
        """Seconds, as its caller saw it. None: it has had no token."""
        return None if self.first_token is None else self.first_token - self.began

    def under_way(self, moment: float) -> bool:
        """Whether it had begun by then, and not ended."""
        return self.began <= moment and (self.ended is None or self.ended >= moment)


class Asking:
    """Sends a trace's requests through the SDK, each as a task of its own."""

    def __init__(self, client: sllm.AsyncClient, arrivals: Sequence[Arrival]) -> None:
        self.asked: list[Asked] = []
        self._client = client
        self._arrivals = arrivals
        self._zero = time.monotonic()

    def now(self) -> float:
        """Seconds since the trace began."""
        return time.monotonic() - self._zero

    async def run(self) -> None:
        """Returns once every request has ended, well or not."""
        self._zero = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for arrival in self._arrivals:
                await asyncio.sleep(max(0.0, arrival.at - self.now()))
                one = Asked(arrival, self.now())
                self.asked.append(one)
                group.create_task(self._ask(one))

    async def _ask(self, one: Asked) -> None:
        stream = self._client.generate(
            one.arrival.deployment,
            PROMPT,
            max_tokens=one.arrival.output_tokens,
            temperature=0.0,
            ignore_eos=True,
            timeout=TIMEOUT_SECONDS,
        )
        try:
            async for event in stream:
                self._note(one, event)
            one.receipt = (await stream.result()).receipt
        except sllm.errors.SllmError as error:
            one.error = error.reason
        one.ended = self.now()

    def _note(self, one: Asked, event: sllm.Event) -> None:
        match event:
            case sllm.Started(node_id=node_id):
                one.node_ids = (*one.node_ids, node_id)
            case sllm.Migrated(to_node_id=node_id):
                one.node_ids = (*one.node_ids, node_id)
            case sllm.Tokens() if one.first_token is None:
                one.first_token = self.now()
            case _:
                pass
