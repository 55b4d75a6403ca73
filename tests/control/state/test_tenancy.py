"""Whether a tenant may make a request at all, before any is read."""

import pytest
from serverlessllm.v1 import inference_service_pb2 as inference_pb

from sllm.clock import MonotonicClock
from sllm.control.requests.tickets import Ticket
from sllm.control.state import tenancy
from sllm.control.state.state import State
from sllm.control.tenants.limits import Limits
from tests.control import shapes

ROOM = 10


@pytest.mark.parametrize(
    ("limits", "waiting", "bound"),
    [
        (Limits(queued=0), 0, None),  # where an instance is free, none has to wait
        (Limits(queued=1), 0, None),
        (Limits(queued=1), 1, "queued"),
        (Limits(queued=2), 1, None),
        (Limits(requests=0), 0, "requests"),
        (Limits(weight=1.0), ROOM, "share"),
        (Limits(weight=1.0), 0, None),
    ],
)
def test_who_may_make_a_request_if_it_need_not_wait_is_read(
    limits: Limits, waiting: int, bound: str | None
) -> None:
    state = State()
    state.tenants.limits["acme"] = limits
    for name in ("acme:llama", "zebra:llama"):
        state.set_deployment(shapes.deployment(name))
    for number in range(waiting):
        request = inference_pb.GenerateRequest(deployment="acme:llama", request_id=str(number))
        state.queue.add(Ticket(request, None, MonotonicClock(), step_seconds=1.0))
    refusal = tenancy.has_all(state, "acme", 0.0, ROOM)
    assert (refusal and refusal.metadata["limit"]) == bound
