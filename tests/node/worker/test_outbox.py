import asyncio

import pytest
import torch
from serverlessllm.v1 import inference_service_pb2 as inference_pb

from sllm.node.worker import wire
from sllm.node.worker.engine.interface import Counters, FinishReason, PromptLogprobs
from sllm.node.worker.generation import (
    Accepted,
    Completed,
    Event,
    Output,
    PromptPart,
    Tokens,
    Usage,
    prompt_parts,
)
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


async def test_parts_of_prompts_leave_a_few_at_a_time_and_in_order() -> None:
    outbox = Outbox(pause=0.0)
    told = PromptLogprobs(torch.zeros(9), torch.zeros(9, 0), torch.zeros(9, 0))
    put(outbox, "a", Accepted((3,) * 10))
    for first in range(10):
        put(outbox, "a", PromptPart(first, (3,), told))
    put(outbox, "a", tokens(0, 10))
    put(outbox, "b", tokens(0, 20))
    taken: list[Output] = []
    while len(taken) < 13:
        outputs = await outbox.take()
        assert outputs
        parts = [one.event.first_index for one in outputs if isinstance(one.event, PromptPart)]
        assert len(parts) <= 4
        if not taken:
            assert outputs[-1].request_id == "b", "who has no part in it does not wait"
        taken += outputs
    assert [one.event.first_index for one in taken if isinstance(one.event, PromptPart)] == [
        *range(10)
    ]
    mine = [one for one in taken if one.request_id == "a"]
    assert [type(one.event) for one in mine] == [Accepted, *[PromptPart] * 10, Tokens]


@pytest.mark.parametrize("alternatives", [0, 20])
@pytest.mark.parametrize("length", [1, 2, 300, 9000])
def test_a_prompt_is_told_in_parts_of_a_moderate_size(length: int, alternatives: int) -> None:
    prompt = tuple(range(length))
    told = PromptLogprobs(
        torch.arange(1, length).float(),
        torch.arange(1, length).unsqueeze(-1).expand(-1, alternatives),
        torch.zeros(length - 1, alternatives),
    )
    found: list[inference_pb.PromptLogprob] = []
    for part in prompt_parts(prompt, told):
        message = wire.request_output(Output("a", part)).prompt_logprobs
        assert message.first_index == len(found)
        assert message.ByteSize() < 128 * 1024
        found += message.tokens
    assert [one.token_id for one in found] == list(prompt)
    assert not found[0].HasField("logprob")
    assert [one.logprob for one in found[1:]] == list(range(1, length))
    assert all(
        [top.token_id for top in one.top] == [one.token_id] * alternatives for one in found[1:]
    )


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
