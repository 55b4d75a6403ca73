"""vLLM through the whole system: what holds on transformers holds here as well."""

import json
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import sllm
from sllm import errors
from tests.e2e.cluster import Cluster, running
from tests.e2e.generations import ask, read_to, same
from tests.e2e.reference import greedy
from tests.e2e.workers import sockets, status
from tests.node.worker.engines import needs_vllm
from tests.support import assert_eventually

pytestmark = [needs_vllm, pytest.mark.timeout(900)]  # nodes import a lot before the first test
PATIENCE = 180.0
"""Seconds that a step may take on a busy machine."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes that have vLLM alone; tests delete what they deploy."""
    with running(tmp_path_factory.mktemp("vllm"), engines=("vllm",)) as cluster:
        yield cluster


@pytest.fixture
async def client(pair: Cluster) -> AsyncIterator[sllm.AsyncClient]:
    async with sllm.AsyncClient(pair.control.address) as client:
        yield client


@pytest.fixture
def source(models: Path) -> str:
    return f"file://{models / 'tiny-llama'}"


@pytest.fixture
async def moving(pair: Cluster, client: sllm.AsyncClient, source: str) -> AsyncIterator[str]:
    """A deployment with an instance on each node."""
    await client.deploy(
        "moving", source, min_replicas=2, max_replicas=2, keep_alive=600.0, timeout=PATIENCE
    )
    await assert_eventually(lambda: _ready(client, 2), PATIENCE)
    assert {one.engine for one in await client.instances()} == {"vllm"}
    yield "moving"
    await client.delete("moving")
    await assert_eventually(lambda: _ready(client, 0), PATIENCE)


async def _ready(client: sllm.AsyncClient, count: int) -> bool:
    found = await client.instances()
    return len(found) == count and all(one.state == "READY" for one in found)


@pytest.mark.parametrize("family", ["tiny-llama", "tiny-opt", "tiny-qwen2", "tiny-gpt2"])
async def test_a_model_starts_ends_and_starts_again(
    client: sllm.AsyncClient, models: Path, family: str
) -> None:
    source = f"file://{models / family}"
    deployment = await client.deploy(family, source, keep_alive=0.0, timeout=PATIENCE)
    assert deployment.engine == "vllm"
    expected = greedy(models / family, "Once upon a time", 12)
    for _ in range(2):
        result = await client.complete(
            family, "Once upon a time", max_tokens=12, temperature=0.0, timeout=PATIENCE
        )
        assert result.token_ids == expected.token_ids
        assert result.text == expected.text
        assert result.receipt.engine == "vllm"
        assert result.receipt.cold
        await assert_eventually(lambda: _ready(client, 0), PATIENCE)
    assert (await client.explain(family)).engine == "vllm"
    await client.delete(family)


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("at", [1, 31, 64, 180])
async def test_one_moves_at_any_step(
    client: sllm.AsyncClient, moving: str, number: int, at: int
) -> None:
    options: dict[str, Any] = {"max_tokens": at + 150}
    expected = await ask(client, number, **options).result()
    stream = ask(client, number, **options)
    await read_to(stream, at)
    migration = await client.migrate(request_id=stream.request_id)
    result = await stream.result()
    same([result], [expected])
    assert [one.outcome for one in migration.requests] == ["MOVED"]
    assert len(result.migrations) == 1


async def test_generations_go_on_when_their_worker_is_killed(
    pair: Cluster, client: sllm.AsyncClient, moving: str
) -> None:
    expected = [await ask(client, number).result() for number in range(4)]
    streams = [ask(client, number) for number in range(4)]
    for stream in streams:
        await read_to(stream, 20)
    victim = (await client.instances())[0]
    pair.signal_worker(victim.instance_id, signal.SIGKILL)
    same([await stream.result() for stream in streams], expected)


async def test_a_caller_that_leaves_stops_its_generation(
    pair: Cluster, client: sllm.AsyncClient, source: str
) -> None:
    await client.deploy("left", source, keep_alive=600.0, timeout=PATIENCE)
    stream = ask(client, 1, deployment="left", max_tokens=400)
    await read_to(stream, 5)
    (socket,) = sockets(pair)
    await stream.cancel()
    await assert_eventually(lambda: status(socket).counters.cancelled_requests == 1, PATIENCE)
    counters = status(socket).counters
    assert not counters.running_requests
    assert counters.generated_tokens < 400
    await client.delete("left")
    await assert_eventually(lambda: _ready(client, 0), PATIENCE)


async def test_what_cannot_be_is_refused(
    client: sllm.AsyncClient, models: Path, tmp_path: Path
) -> None:
    source = f"file://{models / 'tiny-llama'}"
    with pytest.raises(errors.EngineUnavailable, match="no node has the engine 'transformers'"):
        await client.deploy("t", source, engine="transformers", timeout=PATIENCE)
    with pytest.raises(errors.InvalidArgument, match="at least 32 on vllm"):
        await client.deploy("t", source, kv_cache_tokens=31, timeout=PATIENCE)
    for method in ("awq", "gptq", "fp8"):
        directory = shutil.copytree(models / "tiny-llama", tmp_path / method)
        config = json.loads((directory / "config.json").read_text())
        config["quantization_config"] = {"quant_method": method, "bits": 4, "group_size": 32}
        (directory / "config.json").write_text(json.dumps(config))
        with pytest.raises(errors.UnsupportedModel, match=rf"quantised \({method}"):
            await client.deploy("t", f"file://{directory}", timeout=PATIENCE)
    assert not await client.deployments()


async def test_a_context_is_whole_pages(client: sllm.AsyncClient, source: str) -> None:
    await client.deploy("short", source, kv_cache_tokens=100, keep_alive=0.0, timeout=PATIENCE)
    prompt = [5] * 90
    result = await client.complete("short", prompt_token_ids=prompt, max_tokens=6, timeout=PATIENCE)
    assert result.usage.completion_tokens == 6
    with pytest.raises(errors.ContextExceeded):
        await client.complete("short", prompt_token_ids=prompt, max_tokens=7, timeout=PATIENCE)
    await client.delete("short")


async def test_nodes_tell_what_they_have(client: sllm.AsyncClient) -> None:
    for node in await client.nodes():
        assert [(one.name, one.ready) for one in node.engines] == [("vllm", True)]
