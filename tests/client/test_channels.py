"""A client of several control planes asks one that can be reached."""

import asyncio

import pytest
from serverlessllm.v1 import inference_service_pb2 as inference_pb

import sllm
from sllm import errors
from tests.client.fake_control import FakeControl, Silence
from tests.client.messages import QUEUED, finished, generation, tokens

NOBODY = "127.0.0.1:1"


async def test_whoever_is_there_answers(control: FakeControl) -> None:
    async with sllm.AsyncClient(f"{NOBODY},{control.address}") as client:
        control.reply("Generate", *generation())
        stream = client.generate("tiny", "Once")
        assert (await stream.result()).text == "Once upon"
    async with sllm.AsyncClient(f"{NOBODY}, {control.address}") as client:
        for _ in range(2):
            control.reply("Cancel", inference_pb.CancelResponse())
            await client.cancel("r")
    assert len(control.requests["Cancel"]) == 2


async def test_a_stream_is_read_on_at_another(control: FakeControl) -> None:
    """That finds it where it is: all of them ask whoever leads."""
    first = FakeControl()
    first.reply("Generate", QUEUED, tokens(1, 0, 10, text="Once "), Silence())
    control.reply("Generate", tokens(2, 1, 11, text="upon"), finished(3))
    async with sllm.AsyncClient(f"{first.address},{control.address}") as client:
        stream = client.generate("tiny", "Once")
        async for event in stream:
            if isinstance(event, sllm.Tokens) and event.text == "Once ":
                await asyncio.to_thread(first.stop)
        assert (await stream.result()).text == "Once upon"
    (resumed,) = control.requests["Generate"]
    assert resumed.resume_from_sequence == 2


async def test_if_nobody_is_there_that_is_told(control: FakeControl) -> None:
    async with sllm.AsyncClient(f"{NOBODY},127.0.0.1:2") as client:
        with pytest.raises(errors.Unreachable, match=NOBODY):
            await client.generate("tiny", "Once").result()
        with pytest.raises(errors.Unreachable, match=NOBODY):
            await client.cancel("r")


@pytest.mark.parametrize("address", ["", "a:1,", "a:1,b", ",a:1"])
def test_each_is_an_address(address: str) -> None:
    with pytest.raises(errors.InvalidArgument):
        sllm.Client(address or ",")
