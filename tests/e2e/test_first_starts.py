"""First starts of models whose engine copies weights: a node's memory holds what they will take."""

import asyncio
from pathlib import Path

import pytest
from make_models import make_model

import sllm
from sllm import errors
from sllm.checkpoint.importing.import_plan import plan_import
from sllm.checkpoint.sources.sources import LocalSource, inspect
from sllm.node.config import INSTANCE_BYTES, OWN_BYTES, VLLM_BYTES
from sllm.node.instances.private_memory import private_memory
from tests.e2e.cluster import Cluster, running
from tests.node.worker.engines import needs_vllm
from tests.support import assert_eventually

MIB = 1 << 20
DRAM, KV, SPARE = 192, 64, 16
REQUESTS, VOCABULARY = 8, 1024
PATIENCE = 300.0

pytestmark = [needs_vllm, pytest.mark.timeout(900)]


def foretold(model: Path) -> int:
    """MiB that an instance is expected to take while nothing was measured."""
    tensors = plan_import(inspect(LocalSource(model)), None).tensors
    copies = private_memory("vllm", tensors, VOCABULARY)
    return -(-(INSTANCE_BYTES + copies.bytes + REQUESTS * copies.bytes_per_request) // MIB)


async def most_at_once(client: sllm.AsyncClient, until: "asyncio.Future[list[sllm.Result]]") -> int:
    """The most instances that there were; their node never takes more than it has."""
    most = 0
    while not until.done():
        (node,), found = await client.nodes(), await client.instances()
        assert node.memory
        assert node.memory.used_bytes <= node.memory.capacity_bytes
        most = max(most, sum(one.state in ("STARTING", "READY") for one in found))
        await asyncio.sleep(0.05)
    return most


async def measured(client: sllm.AsyncClient) -> bool:
    """Whether one instance is left, and what it takes is known."""
    return [one.own_bytes > 0 for one in await client.instances()] == [True]


async def ask_for_both(cluster: Cluster, models: list[Path]) -> None:
    """Two models that never ran are asked for at once; then one on which too much would go."""
    async with sllm.AsyncClient(cluster.control.address) as client:
        for model in models:
            source = f"file://{model}"
            await client.deploy(
                model.name, source, kv_cache_tokens=512, max_concurrency=REQUESTS, timeout=PATIENCE
            )
        calls = (
            client.complete(model.name, "Once", max_tokens=4, timeout=PATIENCE) for model in models
        )
        results = asyncio.gather(*calls)
        assert await most_at_once(client, results) == 1, "the second had to wait for the first"
        assert all(len(one.token_ids) == 4 for one in await results)
        await assert_eventually(lambda: measured(client), PATIENCE)
        (left,) = await client.instances()
        assert left.own_bytes < foretold(models[0]) * MIB
        with pytest.raises(errors.ModelTooLarge, match="of memory for an instance itself"):
            await client.deploy("busy", f"file://{models[0]}", max_concurrency=4096)


def test_two_first_starts_together_take_no_more_than_there_is(tmp_path: Path) -> None:
    models = [make_model("small-llama", tmp_path / f"m{seed}", seed=seed) for seed in (0, 1)]
    memory = (OWN_BYTES + VLLM_BYTES) // MIB + DRAM + KV + foretold(models[0]) + SPARE
    with running(
        tmp_path,
        nodes=1,
        dram_mib=DRAM,
        kv_mib=KV,
        engines=("vllm",),
        node_options=[f"--memory={memory}MiB"],
    ) as cluster:
        asyncio.run(ask_for_both(cluster, models))
