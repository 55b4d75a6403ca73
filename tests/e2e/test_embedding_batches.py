"""Batches of texts to be embedded: each answered once, as if it had been asked by itself."""

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

import sllm
from sllm import errors
from tests.e2e.cluster import Cluster, gateway_of
from tests.support import assert_eventually

TEXTS = ["Once upon a time", "a", "the for statement", "Ünïcode 🦙"]
MANY = 300


@pytest.fixture
def deployed(cluster: Cluster, encoder: Path) -> Iterator[str]:
    cluster.client.deploy("vectors", f"file://{encoder}", max_concurrency=2, keep_alive=0.0)
    yield "vectors"
    cluster.client.delete("vectors")
    cluster.wait_for_instances(0, "vectors")


def request(number: int, **options: Any) -> sllm.BatchRequest:
    inputs = [f"{TEXTS[number % 4]} {number}", TEXTS[number % 4]]
    return {"deployment": "vectors", "inputs": inputs, **options}  # type: ignore[typeddict-item]


@pytest.fixture
def beside(cluster: Cluster, models: Path) -> Iterator[str]:
    """A deployment that generates."""
    cluster.client.deploy("beside", f"file://{models / 'tiny-llama'}", engine="transformers")
    yield "beside"
    cluster.client.delete("beside")


def test_each_is_answered_as_if_it_came_by_itself(
    cluster: Cluster, deployed: str, beside: str
) -> None:
    client = cluster.client
    generation: Any = {"deployment": beside, "prompt": "Once", "max_tokens": 4, "temperature": 0}
    plain = [request(0), request(1, normalize=True), request(2, request_id="mine"), generation]
    batch = client.submit_batch(plain)
    found = {one.request_id: one for one in client.batch_results(batch.batch_id)}
    assert found.keys() == {"0", "1", "mine", "3"}
    assert client.batch(batch.batch_id).finished == 4
    cluster.wait_for_instances(0, deployed)
    for name, asked in zip(("0", "1", "mine"), plain, strict=False):
        alone = client.embed(
            deployed, list(map(str, asked["inputs"])), normalize=asked.get("normalize")
        )
        told = found[name].embeddings
        assert told is not None
        for one, other in zip(told.embeddings, alone.embeddings, strict=True):
            # Texts of several requests may be in one pass, whose sums are rounded otherwise.
            assert one.values == pytest.approx(other.values, rel=1e-4, abs=1e-6)
        assert told.prompt_tokens == alone.prompt_tokens
    result = found["3"].result
    assert result is not None
    assert result.token_ids == client.complete(**generation).token_ids
    assert client.submit_batch(plain, batch_id=batch.batch_id).finished == 4  # the same again


def test_one_that_is_refused_refuses_all(cluster: Cluster, models: Path, deployed: str) -> None:
    client = cluster.client
    long: Any = {**request(0), "inputs": [[5] * 200]}
    for bad, kind in (
        (long, errors.ContextExceeded),
        ({**request(0), "dimensions": 3}, errors.InvalidArgument),
        ({**request(0), "deployment": "nobody"}, errors.DeploymentNotFound),
        ({**request(0), "priority": 3}, errors.InvalidArgument),
        ({**request(0), "inputs": []}, errors.InvalidPrompt),
    ):
        refused: Any = {**bad, "request_id": "bad"}
        with pytest.raises(kind) as failure:
            client.submit_batch([request(1, request_id="good"), refused])
        assert failure.value.metadata["request_id"] == "bad"
    assert not [one for one in client.batches() if one.state == "RUNNING"]


async def test_who_waits_goes_first_and_nothing_is_lost(cluster: Cluster, deployed: str) -> None:
    async with sllm.AsyncClient(cluster.control.address) as client:
        batch = await client.submit_batch(request(number) for number in range(MANY))
        for number in range(8):
            asked = await client.embed(deployed, [f"somebody {number}"], timeout=60.0)
            assert len(asked.embeddings) == 1
        found = [one async for one in client.batch_results(batch.batch_id)]
        assert Counter(one.request_id for one in found) == Counter(map(str, range(MANY)))
        assert all(one.embeddings for one in found)


async def test_it_is_cancelled_as_a_whole(cluster: Cluster, deployed: str) -> None:
    async with sllm.AsyncClient(cluster.control.address) as client:
        batch = await client.submit_batch(request(number) for number in range(3000))

        async def begun() -> bool:
            return (await client.batch(batch.batch_id)).finished > 0

        await assert_eventually(begun, 60.0)
        cancelled = await client.cancel_batch(batch.batch_id)
        assert cancelled.state == "CANCELLED"
        found = [one async for one in client.batch_results(batch.batch_id)]
        assert len(found) == cancelled.finished < 3000
        await asyncio.to_thread(cluster.wait_for_instances, 0, deployed)


async def test_by_http(cluster: Cluster, deployed: str, tmp_path: Path) -> None:
    with gateway_of(cluster.control, tmp_path) as gateway:
        url = f"http://{gateway.address}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="x", max_retries=0) as client:
            lines = [
                {
                    "custom_id": f"line {number}",
                    "method": "POST",
                    "url": "/v1/embeddings",
                    "body": {"model": deployed, "input": [text, text]},
                }
                for number, text in enumerate(TEXTS)
            ]
            content = "\n".join(map(json.dumps, lines)).encode()
            file = await client.files.create(file=("a.jsonl", content), purpose="batch")
            batch = await client.batches.create(
                input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h"
            )

            async def completed() -> bool:
                return (await client.batches.retrieve(batch.id)).status == "completed"

            await assert_eventually(completed, 60.0)
            output = (await client.batches.retrieve(batch.id)).output_file_id
            assert output is not None
            told = (await client.files.content(output)).text.splitlines()
            alone = await client.embeddings.create(
                model=deployed, input=TEXTS, encoding_format="float"
            )
            found = {one["custom_id"]: one["response"]["body"] for one in map(json.loads, told)}
            for number, one in enumerate(alone.data):
                data = found[f"line {number}"]["data"]
                assert [each["index"] for each in data] == [0, 1]
                assert data[0]["embedding"] == pytest.approx(one.embedding, rel=1e-4, abs=1e-5)
