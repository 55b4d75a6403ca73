"""What is vLLM's own through the whole system; what holds on every engine is tested on each."""

import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import sllm
from sllm import errors
from tests.e2e.cluster import Cluster
from tests.e2e.engines import ENGINES
from tests.e2e.reference import greedy
from tests.node.worker.engines import needs_vllm
from tests.support import assert_eventually

pytestmark = needs_vllm
PATIENCE = 180.0
"""Seconds that a step may take on a busy machine."""


@pytest.fixture
async def client(cluster: Cluster) -> AsyncIterator[sllm.AsyncClient]:
    async with sllm.AsyncClient(cluster.control.address) as client:
        yield client


@pytest.fixture
def source(models: Path) -> str:
    return f"file://{models / 'tiny-llama'}"


async def _ready(client: sllm.AsyncClient, count: int) -> bool:
    found = await client.instances()
    return len(found) == count and all(one.state == "READY" for one in found)


@pytest.mark.parametrize("family", ["tiny-llama", "tiny-opt", "tiny-qwen2", "tiny-gpt2"])
async def test_a_model_starts_ends_and_starts_again(
    client: sllm.AsyncClient, models: Path, family: str
) -> None:
    source = f"file://{models / family}"
    deployment = await client.deploy(
        family, source, engine="vllm", keep_alive=0.0, timeout=PATIENCE
    )
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


async def test_what_cannot_be_is_refused(
    client: sllm.AsyncClient, models: Path, tmp_path: Path
) -> None:
    source = f"file://{models / 'tiny-llama'}"
    with pytest.raises(errors.InvalidArgument, match="at least 32 on vllm"):
        await client.deploy("t", source, engine="vllm", kv_cache_tokens=31, timeout=PATIENCE)
    for method in ("awq", "gptq", "fp8"):
        directory = shutil.copytree(models / "tiny-llama", tmp_path / method)
        config = json.loads((directory / "config.json").read_text())
        config["quantization_config"] = {"quant_method": method, "bits": 4, "group_size": 32}
        (directory / "config.json").write_text(json.dumps(config))
        with pytest.raises(errors.UnsupportedModel, match=rf"quantised \({method}"):
            await client.deploy("t", f"file://{directory}", engine="vllm", timeout=PATIENCE)
    assert not await client.deployments()


async def test_a_context_is_whole_pages(client: sllm.AsyncClient, source: str) -> None:
    options: dict[str, Any] = {"engine": "vllm", "kv_cache_tokens": 100, "keep_alive": 0.0}
    await client.deploy("short", source, timeout=PATIENCE, **options)
    prompt = [5] * 90
    result = await client.complete("short", prompt_token_ids=prompt, max_tokens=6, timeout=PATIENCE)
    assert result.usage.completion_tokens == 6
    with pytest.raises(errors.ContextExceeded):
        await client.complete("short", prompt_token_ids=prompt, max_tokens=7, timeout=PATIENCE)
    await client.delete("short")


async def test_nodes_tell_what_they_have(client: sllm.AsyncClient) -> None:
    for node in await client.nodes():
        assert [(one.name, one.ready) for one in node.engines] == [(name, True) for name in ENGINES]
