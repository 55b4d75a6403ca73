"""The order in which requests are served: by priority, and by how long they wait."""

import itertools
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from sllm.control.requests.queue import RequestQueue, turn

STEP = 10.0


@dataclass(frozen=True)
class Request:
    deployment: str
    enqueued_at: float
    priority: int = 0

    @property
    def turn(self) -> float:
        return turn(self.enqueued_at, self.priority, STEP)


A1, B2, A3 = Request("a", 1.0), Request("b", 2.0), Request("a", 3.0)


def _queue(*requests: Request) -> RequestQueue[Request]:
    queue: RequestQueue[Request] = RequestQueue()
    for request in requests or (A1, B2, A3):
        queue.add(request)
    return queue


def test_each_line_is_first_come_first_served() -> None:
    queue = _queue()
    assert len(queue) == 3
    assert [queue.pop("a"), queue.pop("a")] == [A1, A3]
    assert queue.deployments() == ("b",)


def test_what_comes_back_regains_its_place() -> None:
    queue = _queue()
    queue.pop("a")
    queue.add(A1)
    assert queue.head("a") == A1


def test_a_request_can_leave_from_anywhere() -> None:
    queue = _queue()
    queue.remove(A3)
    queue.remove(A3)
    queue.remove(A1)
    assert queue.head("a") is None
    assert queue.count("a") == 0
    assert len(queue) == 1
    assert list(queue.of("b")) == [B2]


def test_a_higher_priority_goes_first() -> None:
    urgent = Request("a", 4.0, priority=1)
    queue = _queue(A1, A3, urgent)
    assert list(queue.of("a")) == [urgent, A1, A3]
    assert queue.ahead("a", urgent.turn) == 1
    assert queue.ahead("a", turn(5.0, 0, STEP)) == 3


def test_who_has_waited_for_longer_than_the_difference_is_worth_is_passed_over_no_more() -> None:
    late = Request("a", 1.0 + STEP + 0.1, priority=1)
    assert list(_queue(A1, late).of("a")) == [A1, late]


def test_the_longest_wait_need_not_be_that_of_the_next_one() -> None:
    queue = _queue(A1, Request("a", 4.0, priority=1))
    assert queue.waited("a", 10.0) == 9.0
    assert queue.waited("c", 10.0) == 0.0


requests = st.builds(
    Request, st.sampled_from("ab"), st.integers(0, 100).map(float), st.integers(-3, 3)
)


@given(st.lists(requests, min_size=1, max_size=20))
def test_whoever_is_served_later_came_later_or_matters_less(all_of_them: list[Request]) -> None:
    queue = _queue(*all_of_them)
    assert len(queue) == len(all_of_them)
    for name in queue.deployments():
        line = list(queue.of(name))
        for first, second in itertools.pairwise(line):
            if first.priority == second.priority:
                assert first.enqueued_at <= second.enqueued_at
            if first.priority < second.priority:  # it has waited long enough for that
                steps = second.priority - first.priority
                assert second.enqueued_at - first.enqueued_at >= STEP * steps
