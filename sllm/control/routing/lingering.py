"""Generations whose caller is not there, and how it comes back to them."""

import math
from typing import Final

from sllm.clock import Clock
from sllm.control.orchestration.dispatcher import Dispatcher
from sllm.control.requests.tickets import Ticket

_LOOK_SECONDS: Final = 0.05
"""Between two looks for a generation whose caller reads on."""


class Lingering:
    """Those that go on at nodes, as these tell, and as is known before they have told."""

    def __init__(self, dispatcher: Dispatcher, clock: Clock, lease_seconds: float) -> None:
        """`lease_seconds`: within which each node has reported that is there."""
        self._dispatcher = dispatcher
        self._clock = clock
        self._left: dict[str, tuple[str, float]] = {}
        """By request: the instance, and when it ends there, in the clock's seconds."""
        self._settled_at = clock.now() + lease_seconds
        """When all nodes that were there before a restart have reported, in the clock's seconds."""

    def is_unread(self, request_id: str) -> bool:
        """Whether a node goes on with a request that nobody reads."""
        return self._dispatcher.unread_on(request_id) is not None

    def may_go_on(self, request_id: str) -> bool:
        """Whether a request was taken once, and goes on without its caller, for all that is known.

        Soon after a restart, nodes have not all reported yet.
        """
        now, (_, until) = self._clock.now(), self._left.get(request_id, ("", -math.inf))
        return now < max(until, self._settled_at) or self.is_unread(request_id)

    def left(self, request_id: str, instance_id: str, seconds: float) -> None:
        """Notes where a request lingers: its caller may come back before its node has told."""
        now = self._clock.now()
        self._left = {key: left for key, left in self._left.items() if left[1] > now}
        self._left[request_id] = instance_id, now + seconds

    async def reattach(self, ticket: Ticket) -> None:
        """Reads on where the generation goes on, or begins anew with what the caller has."""
        left, _ = self._left.pop(ticket.request_id, ("", 0.0))
        while not ticket.error:
            if self._dispatcher.reattach(ticket, left):
                ticket.reattached = True
                return
            if self._clock.now() >= self._settled_at:
                self._dispatcher.enqueue(ticket)
                return
            await self._clock.sleep(_LOOK_SECONDS)
