"""Logprobs of prompts through the whole system: told once, whatever becomes of what serves them."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import sllm
from tests.e2e.cluster import Cluster
from tests.e2e.engines import others_at_night
from tests.e2e.generations import two_instances

PROMPT = "The story of how it all began " * 12
ASKED: dict[str, Any] = {"prompt_logprobs": 3, "temperature": 0.0, "ignore_eos": True}
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def pair(cluster: Cluster, models: Path, engine: str) -> Iterator[Cluster]:
    """Two nodes with an instance each of one deployment, which stay."""
    with two_instances(cluster, "told", models / "tiny-llama", engine, dtype="float32"):
        yield cluster


@pytest.fixture
async def client(pair: Cluster) -> AsyncIterator[sllm.AsyncClient]:
    async with sllm.AsyncClient(pair.control.address) as client:
        yield client


@pytest.fixture(scope="module")
def expected(models: Path) -> tuple[list[int], torch.Tensor]:
    """The prompt's tokens, and what the model's module gives: float32 [tokens - 1, vocabulary]."""
    directory = models / "tiny-llama"
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(directory)(PROMPT).input_ids
    with torch.no_grad():
        return ids, model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)


def check(result: sllm.Result, expected: tuple[list[int], torch.Tensor]) -> None:
    ids, rows = expected
    told = result.prompt_logprobs
    assert told is not None
    assert [one.token_id for one in told] == ids
    assert (told[0].logprob, told[0].top) == (None, ())
    for one, row in zip(told[1:], rows, strict=True):
        assert one.logprob == pytest.approx(float(row[one.token_id]), abs=TOLERANCE)
        likeliest = row.topk(3).values.tolist()
        assert [top.logprob for top in one.top] == pytest.approx(likeliest, abs=TOLERANCE)


async def test_they_are_those_of_the_module(
    client: sllm.AsyncClient, expected: tuple[list[int], torch.Tensor]
) -> None:
    plain = await client.complete("told", PROMPT, max_tokens=8, temperature=0.0, ignore_eos=True)
    for _ in range(2):  # all of it is in the cache by now
        result = await client.complete("told", PROMPT, max_tokens=8, **ASKED)
        check(result, expected)
        assert result.token_ids == plain.token_ids
        assert result.usage.cached_prompt_tokens == 0


async def test_many_ask_at_once(
    client: sllm.AsyncClient, expected: tuple[list[int], torch.Tensor]
) -> None:
    calls = [client.complete("told", PROMPT, max_tokens=4, n=1 + n % 3, **ASKED) for n in range(6)]
    for result in await asyncio.gather(*calls):
        check(result, expected)


async def test_they_are_not_told_again_after_a_move(
    client: sllm.AsyncClient, expected: tuple[list[int], torch.Tensor]
) -> None:
    stream = client.generate("told", PROMPT, max_tokens=300, **ASKED)
    while not isinstance(await stream.receive(), sllm.Tokens):
        pass
    migration = await client.migrate(request_id=stream.request_id)
    result = await stream.result()
    assert [one.outcome for one in migration.requests] == ["MOVED"]
    assert len(result.migrations) == 1
    check(result, expected)


@others_at_night
@pytest.mark.parametrize("after", [sllm.Started, sllm.PromptLogprobs, sllm.Tokens])
async def test_they_are_told_once_though_a_worker_is_killed(
    client: sllm.AsyncClient,
    pair: Cluster,
    expected: tuple[list[int], torch.Tensor],
    after: type[Any],
) -> None:
    stream = client.generate("told", PROMPT, max_tokens=200, **ASKED)
    while not isinstance(await stream.receive(), after):
        pass
    busiest = max(await client.instances(), key=lambda one: one.running_requests)
    await asyncio.to_thread(pair.signal_worker, busiest.instance_id, signal.SIGKILL)
    check(await stream.result(), expected)
    await asyncio.to_thread(pair.wait_for_instances, 2, "told")


@pytest.mark.parametrize("after", [sllm.Started, sllm.PromptLogprobs, sllm.Tokens])
async def test_who_reads_on_is_told_what_is_lacking(
    client: sllm.AsyncClient, expected: tuple[list[int], torch.Tensor], after: type[Any]
) -> None:
    stream = client.generate("told", PROMPT, max_tokens=100, linger=60.0, **ASKED)
    while not isinstance(await stream.receive(), after):
        pass
    stream._call.resume(stream._transcript)  # what follows a connection that was lost
    check(await stream.result(), expected)


@others_at_night
async def test_a_control_plane_that_is_restarted_costs_none(
    client: sllm.AsyncClient, pair: Cluster, expected: tuple[list[int], torch.Tensor]
) -> None:
    stream = client.generate("told", PROMPT, max_tokens=300, **ASKED)
    while not isinstance(await stream.receive(), sllm.PromptLogprobs):
        pass
    await asyncio.to_thread(pair.control.kill)
    await asyncio.to_thread(pair.control.restart)
    check(await stream.result(), expected)
    await asyncio.to_thread(pair.wait_for_nodes, 2)
    await asyncio.to_thread(pair.wait_for_instances, 2, "told")
