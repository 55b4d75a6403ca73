"""The queue keeps the order in which requests came."""

from dataclasses import dataclass

from sllm.control.queue import RequestQueue


@dataclass(frozen=True)
class Request:
    deployment: str
    enqueued_at: float


A1, B2, A3 = Request("a", 1.0), Request("b", 2.0), Request("a", 3.0)


def _queue() -> RequestQueue[Request]:
    queue: RequestQueue[Request] = RequestQueue()
    for request in (A1, B2, A3):
        queue.add(request)
    return queue


def test_each_line_is_first_come_first_served() -> None:
    queue = _queue()
    assert len(queue) == 3
    assert [queue.pop("a"), queue.pop("a")] == [A1, A3]
    assert queue.deployments() == ("b",)


def test_what_was_served_already_goes_to_the_front() -> None:
    queue = _queue()
    queue.pop("a")
    queue.add_first(A1)
    assert queue.head("a") == A1


def test_a_request_can_leave_from_anywhere() -> None:
    queue = _queue()
    queue.remove(A3)
    queue.remove(A3)
    queue.remove(A1)
    assert queue.head("a") is None
    assert queue.count("a") == 0
    assert list(queue.of("b")) == [B2]
