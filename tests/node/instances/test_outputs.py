"""What a worker puts out is taken once, and again by another reader from where it wants."""

import asyncio

import pytest
from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1 import worker_service_pb2 as pb

from sllm import errors
from sllm.node.instances.outputs import OutputStream

ACCEPTED = pb.RequestOutput(accepted=pb.Accepted(prompt_tokens=2, prompt_token_ids=[7, 8]))


def tokens(first: int, *ids: int) -> pb.RequestOutput:
    return pb.RequestOutput(tokens=inference_pb.Tokens(first_index=first, token_ids=ids))


def completed(first: int, *ids: int) -> pb.RequestOutput:
    last = inference_pb.Tokens(first_index=first, token_ids=ids)
    return pb.RequestOutput(completed=pb.Completed(tokens=last))


def stream(generated: tuple[int, ...] = (), *, keep: bool = True) -> OutputStream:
    request = inference_pb.GenerateRequest(
        continuation=inference_pb.Continuation(token_ids=generated)
    )
    return OutputStream(request, keep=keep)


def put(outputs: OutputStream, *all_of_them: pb.RequestOutput) -> None:
    for output in all_of_them:
        outputs.put(output)


async def test_what_waits_is_taken_together_and_once() -> None:
    outputs = stream(keep=False)
    put(outputs, ACCEPTED, tokens(0, 10))
    assert await outputs.take() == [ACCEPTED, tokens(0, 10)]
    reader = asyncio.create_task(outputs.take())
    await asyncio.sleep(0)
    assert not reader.done()
    put(outputs, tokens(1, 11))
    assert await reader == [tokens(1, 11)]
    assert list(outputs.prompt) == [7, 8]
    assert outputs.token_ids == [10, 11]


@pytest.mark.parametrize("taken_before", [False, True])
@pytest.mark.parametrize("count", [0, 1, 3, 4])
async def test_another_reader_takes_it_again(count: int, taken_before: bool) -> None:
    outputs = stream()
    parts = [tokens(0, 10), tokens(1, 11, 12), completed(3, 13)]
    put(outputs, ACCEPTED, *parts)
    if taken_before:
        await outputs.take()
    goes_on = outputs.rewind(count)
    assert goes_on == (count < 4), "what has been given out whole is not there any more"
    if goes_on:
        again = await outputs.take()
        told_before = [] if count else [ACCEPTED]
        assert again == told_before + [one for one in parts if first_of(one) >= count]


def first_of(output: pb.RequestOutput) -> int:
    is_last = output.HasField("completed")
    return (output.completed.tokens if is_last else output.tokens).first_index


async def test_a_place_within_an_output_cannot_be_gone_back_to() -> None:
    outputs = stream()
    put(outputs, ACCEPTED, tokens(0, 10, 11))
    assert not outputs.rewind(1)


async def test_one_that_is_ahead_waits() -> None:
    outputs = stream((10, 11))
    assert outputs.rewind(2)
    assert not outputs.rewind(3)
    reader = asyncio.create_task(outputs.take())
    put(outputs, ACCEPTED, tokens(2, 12))
    assert (await reader)[-1] == tokens(2, 12)


async def test_what_was_dropped_cannot_be_taken_again() -> None:
    outputs = stream(keep=False)
    put(outputs, ACCEPTED, tokens(0, 10))
    await outputs.take()
    assert not outputs.rewind(0)
    assert outputs.rewind(1)


async def test_the_second_acceptance_is_not_told() -> None:
    outputs = stream()
    put(outputs, ACCEPTED, tokens(0, 10), ACCEPTED, tokens(1, 11))
    assert await outputs.take() == [ACCEPTED, tokens(0, 10), tokens(1, 11)]


async def test_a_failure_comes_after_what_waits() -> None:
    outputs = stream()
    put(outputs, tokens(0, 10))
    outputs.fail(errors.WorkerDied("gone"))
    assert outputs.ended
    assert outputs.failed
    assert await outputs.take() == [tokens(0, 10)]
    with pytest.raises(errors.WorkerDied):
        await outputs.take()


async def test_a_move_comes_after_what_waits() -> None:
    outputs = stream()
    put(outputs, tokens(0, 10))
    outputs.move(inference_pb.Moved(node_id="n2"))
    assert await outputs.take() == [tokens(0, 10)]
    assert await outputs.take() == []
    assert outputs.moved


async def test_growth_is_noticed() -> None:
    outputs = stream()
    grown = outputs.grown()
    assert grown is outputs.grown()
    put(outputs, tokens(0, 1))
    assert grown.is_set()
    assert not outputs.grown().is_set()


def prompt(first: int, count: int) -> pb.RequestOutput:
    parts = [inference_pb.PromptLogprob(token_id=first + place) for place in range(count)]
    told = inference_pb.PromptLogprobs(first_index=first, tokens=parts)
    return pb.RequestOutput(prompt_logprobs=told)


async def test_what_was_told_of_the_prompt_is_not_told_again() -> None:
    outputs = stream()
    put(outputs, ACCEPTED, prompt(0, 2), prompt(2, 1))
    await outputs.take()
    put(outputs, ACCEPTED, prompt(0, 2), prompt(2, 1), tokens(0, 10))  # a move came to nothing
    assert await outputs.take() == [tokens(0, 10)]
    assert outputs.rewind(0)
    assert await outputs.take() == [ACCEPTED, prompt(0, 2), prompt(2, 1), tokens(0, 10)]
    assert outputs.rewind(1)
    put(outputs, tokens(1, 11))
    assert await outputs.take() == [tokens(1, 11)]
