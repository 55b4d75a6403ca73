"""Where requests are let in, or not, by what there is of others."""

from collections import Counter
from collections.abc import Sequence

from sllm.clock import Clock
from sllm.control.config import ControlConfig
from sllm.control.requests.tickets import Ticket
from sllm.control.routing import admission
from sllm.control.routing.wait_estimates import WaitEstimates
from sllm.control.state import tenancy
from sllm.control.state.state import State
from sllm.control.tenants.names import tenant_of


class Entrance:
    """Compares requests with what their tenants may have, and with what waits already."""

    def __init__(
        self, state: State, wait_estimates: WaitEstimates, clock: Clock, config: ControlConfig
    ) -> None:
        self._state = state
        self._wait_estimates = wait_estimates
        self._clock = clock
        self._config = config

    def admit(self, tickets: Sequence[Ticket], new: int) -> None:
        """Refuses requests the last of which would wait for too long.

        Those that are `new` count against what their tenant may have; what was taken once goes on.
        """
        first = last = self._wait_estimates.of(tickets[0])
        if len(tickets) > 1:
            last = self._wait_estimates.of(tickets[0], len(tickets))
        name, to_wait = tickets[0].named, min(new, last.to_wait)
        if new:
            now = self._clock.now()
            tenancy.check_requests(self._state, name, now, more=new, to_wait=to_wait)
            self._check_images(tickets)
        admission.check_queue(last, self._config)
        tenancy.check_share(self._state, name, to_wait, self._config.max_queued)
        admission.check_deadline(last, tickets[0].remaining())
        for place, ticket in enumerate(tickets):
            ticket.position, ticket.estimated_wait = first.ahead + place, first.wait

    def _check_images(self, tickets: Sequence[Ticket]) -> None:
        if more := sum(one.image_bytes for one in tickets):
            held = Counter[str]()
            for one in self._state.tickets.values():
                held[tenant_of(one.named)] += one.image_bytes
            room = self._config.max_image_bytes
            admission.check_images(held.total(), more, self._config)
            tenancy.check_image_share(self._state, tickets[0].named, more, room, held)
