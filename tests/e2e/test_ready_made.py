"""Weights are made ready after a first start, and the next one takes them where they lie."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import sllm
from tests.e2e.cluster import Cluster, running
from tests.e2e.engines import ENGINES
from tests.support import assert_eventually

SECONDS = 120.0
PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def one_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A node that makes models of any size ready."""
    directory = tmp_path_factory.mktemp("ready")
    options = ("--ready-made", "1KiB")
    with running(directory, nodes=1, engines=ENGINES, node_options=options) as cluster:
        yield cluster


@pytest.mark.parametrize("engine", ENGINES)
async def test_the_next_start_gives_the_same(one_node: Cluster, models: Path, engine: str) -> None:
    async with sllm.AsyncClient(one_node.control.address) as client:

        async def made() -> list[sllm.CheckpointCopy]:
            (node,) = await client.nodes()
            return [one for one in node.copies if one.made_of and one.tier == "DRAM"]

        async def generated() -> sllm.Result:
            return await client.complete(
                engine, PROMPT, max_tokens=60, temperature=0.0, timeout=SECONDS
            )

        async def has_scaled_to_zero() -> bool:
            return not await client.instances()

        before = {one.digest for one in await made()}
        source = f"file://{models / 'tiny-llama'}"
        await client.deploy(engine, source, engine=engine, keep_alive=600.0, timeout=SECONDS)
        published = await generated()

        async def is_made() -> bool:
            return len(before) < len(await made())

        await assert_eventually(is_made, SECONDS)
        await client.deploy(engine, source, engine=engine, keep_alive=0.0)
        await assert_eventually(has_scaled_to_zero, SECONDS)
        await client.deploy(engine, source, engine=engine, keep_alive=600.0)
        again = await generated()
        assert (again.token_ids, again.text) == (published.token_ids, published.text)
        assert again.receipt.from_tier == "DRAM"
        (used,) = [one for one in await made() if one.leased]
        assert used.digest not in before
        assert used.made_for == engine
        (instance,) = await client.instances()
        assert instance.digest == used.made_of
        await client.delete(engine)
        await assert_eventually(has_scaled_to_zero, SECONDS)
