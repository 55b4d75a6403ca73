"""What the orchestrator has to look at: all that is due, and each of it once."""

import asyncio

from sllm.clock import ManualClock
from sllm.control.orchestration.agenda import Agenda
from sllm.control.state.changes import Changes

SECONDS = 20.0


def test_what_is_woken_is_due_once() -> None:
    agenda = Agenda(Changes(), ManualClock())
    agenda.wake("a")
    agenda.wake("a")
    assert agenda.take(0.0, ()) == {"a"}
    assert agenda.take(0.0, ()) == set()


def test_those_without_room_are_due_when_there_may_be_more() -> None:
    agenda = Agenda(Changes(), ManualClock())
    agenda.wake("a")
    assert agenda.take(0.0, {"b"}) == {"a"}
    agenda.wake_for_room()
    assert agenda.take(0.0, {"b"}) == {"b"}
    assert agenda.take(0.0, {"b"}) == set()


def test_the_earliest_of_several_moments_counts_and_is_over_once_it_was_looked_at() -> None:
    agenda = Agenda(Changes(), ManualClock())
    for moment in (7.0, 5.0, 6.0):
        agenda.later("a", moment)
    agenda.later("b", 6.0)
    agenda.forget("b")
    assert agenda.take(4.9, ()) == set()
    assert agenda.take(5.0, ()) == {"a"}
    assert agenda.take(9.0, ()) == set()


async def test_it_is_waited_for_until_a_moment_has_come_or_something_happens() -> None:
    agenda = Agenda(Changes(), ManualClock(start=5.0))
    async with asyncio.timeout(SECONDS):
        agenda.later("a", 5.0)
        await agenda.until_due()
        assert agenda.take(5.0, ()) == {"a"}

        waiting = asyncio.create_task(agenda.until_due())
        await asyncio.sleep(0)
        assert not waiting.done()
        agenda.wake("b")
        await waiting
