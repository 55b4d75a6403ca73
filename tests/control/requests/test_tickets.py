"""Requests in the router: what ends them is told with its cause."""

import pytest
from serverlessllm.v1 import inference_service_pb2 as pb

from sllm import errors
from sllm.clock import ManualClock
from sllm.control.requests.tickets import Ticket
from sllm.control.state.failed_starts import start_error


def _ticket() -> Ticket:
    request = pb.GenerateRequest(deployment="tiny", request_id="r")
    return Ticket(request, None, ManualClock(), step_seconds=1.0)


def _causes(error: BaseException) -> list[BaseException]:
    found = []
    cause = error.__cause__
    while cause:
        found.append(cause)
        cause = cause.__cause__
    return found


async def test_what_ends_a_request_that_waits_keeps_its_causes() -> None:
    worker_died = errors.WorkerDied("killed by signal 9")
    not_started = start_error("tiny", "n1", worker_died)
    one, other = _ticket(), _ticket()
    for ticket in (one, other):
        ticket.fail(not_started)
        with pytest.raises(errors.WorkerDied) as caught:
            await ticket.news()
        assert caught.value is not not_started, "it would collect the tracebacks of all"
        assert _causes(caught.value) == [not_started, worker_died]
    assert one.error is not other.error
