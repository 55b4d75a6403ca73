"""Mixtures of experts that are larger than the memory given to them, through the whole system."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import sllm
from sllm import errors
from tests.e2e.cluster import Cluster, running
from tests.e2e.generations import ask, busiest, moved, read_to, same, two_instances
from tests.e2e.reference import greedy
from tests.mixtures import LAYER_BYTES, make_mixture

MEMORY = LAYER_BYTES * 5 // 2
"""For less than half of the experts."""
LONG: dict[str, Any] = {"deployment": "mixture", "max_tokens": 60}


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_mixture(tmp_path_factory.mktemp("mixture") / "model")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes with a pool that is smaller than the model."""
    with running(tmp_path_factory.mktemp("small"), dram_mib=32, kv_mib=64) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def pair(small: Cluster, mixture: Path) -> Iterator[Cluster]:
    with two_instances(small, "mixture", mixture, "transformers", expert_memory=MEMORY):
        yield small


@pytest.fixture
async def client(small: Cluster) -> AsyncIterator[sllm.AsyncClient]:
    async with sllm.AsyncClient(small.control.address) as client:
        yield client


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({}, errors.ModelTooLarge, "weights of"),
        ({"expert_memory": 0}, errors.InvalidArgument, "it is 0"),
        ({"expert_memory": LAYER_BYTES // 2}, errors.InvalidArgument, "experts of one layer"),
        ({"expert_memory": MEMORY, "engine": "vllm"}, errors.InvalidArgument, "'vllm'"),
        ({"expert_memory": MEMORY, "max_adapters": 2}, errors.InvalidArgument, "max_adapters 2"),
        ({"expert_memory": MEMORY, "tensor_parallel": 2}, errors.InvalidArgument, "parallel 2"),
    ],
)
async def test_what_cannot_be_is_refused_with_the_numbers(
    client: sllm.AsyncClient,
    mixture: Path,
    options: dict[str, Any],
    error: type[errors.SllmError],
    words: str,
) -> None:
    with pytest.raises(error, match=words):
        await client.deploy("never", f"file://{mixture}", **options)


async def test_other_models_are_refused(client: sllm.AsyncClient, models: Path) -> None:
    source = f"file://{models / 'tiny-llama'}"
    with pytest.raises(errors.UnsupportedModel, match="no mixture of experts"):
        await client.deploy("never", source, expert_memory=MEMORY)


async def test_a_model_that_is_larger_than_the_pool_gives_the_tokens_of_the_whole(
    client: sllm.AsyncClient, pair: Cluster, mixture: Path
) -> None:
    prompts = ["Once upon a time", "The quick brown fox", "a b c d e f g h"]
    asked = [
        client.generate("mixture", prompt, max_tokens=40, temperature=0.0, ignore_eos=True)
        for prompt in prompts
    ]
    for prompt, stream in zip(prompts, asked, strict=True):
        expected = await asyncio.to_thread(greedy, mixture, prompt, 40)
        assert (await stream.result()).token_ids == expected.token_ids
    (deployment,) = await client.deployments()
    assert deployment.expert_memory == MEMORY
    assert deployment.model.experts is not None
    assert deployment.model.experts.size_bytes == LAYER_BYTES * 6


async def test_its_memory_is_in_the_books(client: sllm.AsyncClient, pair: Cluster) -> None:
    for one in await client.instances("mixture"):
        assert one.own_bytes > MEMORY
    for node in await client.nodes():
        assert not any(copy.tier == "DRAM" for copy in node.copies)


@pytest.mark.parametrize("number", [0, pytest.param(1, marks=pytest.mark.nightly)])
async def test_a_generation_moves_between_such_instances(
    client: sllm.AsyncClient, pair: Cluster, number: int
) -> None:
    expected = await ask(client, number, **LONG).result()
    stream, migration = await moved(client, lambda: ask(client, number, **LONG), 20)
    same([await stream.result()], [expected])
    assert [one.outcome for one in migration.requests] == ["MOVED"]


async def test_requests_go_on_elsewhere_when_a_worker_is_killed(
    client: sllm.AsyncClient, pair: Cluster
) -> None:
    expected = await ask(client, 2, **LONG).result()
    stream = ask(client, 2, **LONG)
    await read_to(stream, 5)
    os.kill((await busiest(client, "mixture")).worker_pid, signal.SIGKILL)
    result = await stream.result()
    same([result], [expected])
    assert [one.reason for one in result.migrations] == ["FAILOVER"]
    await asyncio.to_thread(pair.wait_for_instances, 2, "mixture")


async def test_requests_go_on_elsewhere_when_the_disk_gives_other_bytes(
    client: sllm.AsyncClient, pair: Cluster
) -> None:
    """The copy is set aside, and another one is imported in its place."""
    expected = await ask(client, 3, **LONG).result()
    stream = ask(client, 3, **LONG)
    await read_to(stream, 5)
    node = (await busiest(client, "mixture")).node_id
    (file,) = (pair.directory / node).glob("**/partition-00000.bin")
    with file.open("r+b") as content:
        content.write(bytes(file.stat().st_size))
    result = await stream.result()
    same([result], [expected])
    assert "FAILOVER" in [one.reason for one in result.migrations]
    await asyncio.to_thread(pair.wait_for_instances, 2, "mixture")
    assert "node.checkpoint_quarantined" in pair.node_of(node).log_text()
    same([await ask(client, 3, **LONG).result() for _ in range(2)], [expected] * 2)
