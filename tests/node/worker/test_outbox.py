import asyncio

from sllm.node.worker.engine.interface import Counters, FinishReason
from sllm.node.worker.generation import Accepted, Completed, Event, Output, Tokens, Usage
from sllm.node.worker.outbox import Outbox


def tokens(first: int, *ids: int, text: str = "") -> Tokens:
    return Tokens(first, ids, text, ())


def put(outbox: Outbox, request_id: str, event: Event, steps: int = 0) -> None:
    outbox.put((Output(request_id, event),), Counters(steps=steps))


async def test_tokens_that_wait_together_leave_together() -> None:
    outbox = Outbox()
    put(outbox, "a", Accepted((3,)))
    put(outbox, "a", tokens(0, 10, text="x"))
    put(outbox, "b", tokens(5, 50))
    put(outbox, "a", tokens(1, 11, text="y"))
    end = Completed(tokens(2, 12), FinishReason.STOP, Usage(3, 3, 0), None, 0.1)
    put(outbox, "a", end, steps=7)
    assert await outbox.take() == [
        Output("a", Accepted((3,))),
        Output("a", tokens(0, 10, 11, text="xy")),
        Output("b", tokens(5, 50)),
        Output("a", end),
    ]
    assert outbox.counters.steps == 7


async def test_a_reader_waits_for_the_first_output() -> None:
    outbox = Outbox()
    reader = asyncio.create_task(outbox.take())
    await asyncio.sleep(0)
    assert not reader.done()
    put(outbox, "a", Accepted((1,)))
    assert await reader == [Output("a", Accepted((1,)))]


async def test_a_step_without_outputs_still_brings_its_counters() -> None:
    outbox = Outbox()
    outbox.put((), Counters(cancelled_requests=1))
    assert await outbox.take() == []
    assert outbox.counters.cancelled_requests == 1


async def test_a_closed_outbox_gives_what_waits_and_then_nothing() -> None:
    outbox = Outbox()
    put(outbox, "a", Accepted((1,)))
    outbox.close()
    assert await outbox.take() == [Output("a", Accepted((1,)))]
    assert await outbox.take() is None


async def test_tokens_alone_wait_for_the_pause_to_pass_and_leave_with_what_cannot_wait() -> None:
    outbox = Outbox(pause=600.0)
    put(outbox, "a", tokens(0, 10))
    await outbox.take()
    outbox.put((Output("a", tokens(1, 11)),), Counters(), at_once=False)
    reader = asyncio.create_task(outbox.take())
    for _ in range(10):
        await asyncio.sleep(0)
    assert not reader.done()
    put(outbox, "b", Accepted((1,)))
    assert await reader == [Output("a", tokens(1, 11)), Output("b", Accepted((1,)))]


async def test_the_pause_ends_by_itself() -> None:
    outbox = Outbox(pause=0.01)
    for index in range(3):
        outbox.put((Output("a", tokens(index, index)),), Counters(), at_once=False)
        assert await outbox.take() == [Output("a", tokens(index, index))]
