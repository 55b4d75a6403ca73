"""A deployment goes over to another engine under load, and nobody notices."""

import asyncio
from pathlib import Path
from typing import Any

import sllm
from tests.e2e.cluster import Cluster
from tests.e2e.generations import ask, same
from tests.node.worker.engines import needs_vllm
from tests.support import assert_eventually

SECONDS = 120.0
CALLERS = 3
LONG: dict[str, Any] = {"deployment": "rolled", "max_tokens": 300}


@needs_vllm
async def test_callers_get_all_they_asked_for_meanwhile(cluster: Cluster, models: Path) -> None:
    source = f"file://{models / 'tiny-llama'}"
    async with sllm.AsyncClient(cluster.control.address) as client:
        await client.deploy("rolled", source, engine="transformers", keep_alive=600.0)
        expected = [await ask(client, number, **LONG).result() for number in range(CALLERS)]
        callers = [
            asyncio.create_task(_until_on("vllm", client, number, expected[number]))
            for number in range(CALLERS)
        ]
        await client.deploy("rolled", source, engine="vllm", keep_alive=600.0, timeout=SECONDS)
        async with asyncio.timeout(SECONDS):
            for engines in await asyncio.gather(*callers):
                assert set(engines) == {"transformers", "vllm"}
                assert engines == sorted(engines), "it went back"
        await assert_eventually(lambda: _runs_on_alone(client, "vllm"), SECONDS)
        await client.delete("rolled")
        await asyncio.to_thread(cluster.wait_for_instances, 0)


async def _until_on(
    engine: str, client: sllm.AsyncClient, number: int, expected: sllm.Result
) -> list[str]:
    """Asks again and again, until an engine has answered; the engines of all answers."""
    engines: list[str] = []
    while engine not in engines:
        result = await ask(client, number, **LONG).result()
        same([result], [expected])
        assert not result.migrations
        engines.append(result.receipt.engine)
    return engines


async def _runs_on_alone(client: sllm.AsyncClient, engine: str) -> bool:
    return [one.engine for one in await client.instances()] == [engine]
