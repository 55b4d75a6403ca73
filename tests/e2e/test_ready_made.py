"""Weights are made ready after a first start, and the next one takes them where they lie."""

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import sllm
from sllm import checkpoint
from sllm.node.instances.packing import Target, make_ready
from tests.e2e.cluster import Cluster, running
from tests.e2e.engines import ENGINES
from tests.node.worker.engines import needs_vllm
from tests.quantised import KINDS, needs_int4, quantised
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


@pytest.fixture(scope="module")
def int4(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = shutil.copytree(models / "tiny-llama", tmp_path_factory.mktemp("int4") / "model")
    quantised(directory, KINDS[2])
    return directory


@pytest.mark.parametrize(
    ("engine", "is_quantised"),
    [
        *((engine, False) for engine in ENGINES),
        pytest.param("vllm", True, marks=[needs_vllm, needs_int4]),
    ],
)
async def test_the_next_start_gives_the_same(
    one_node: Cluster, models: Path, int4: Path, engine: str, is_quantised: bool
) -> None:
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
        source = f"file://{int4 if is_quantised else models / 'tiny-llama'}"
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


async def test_what_was_packed_ready_serves_the_first_start(
    one_node: Cluster, models: Path, tmp_path: Path
) -> None:
    engine, packed = "transformers", tmp_path / "packed"
    digest = await asyncio.to_thread(checkpoint.pack, models / "tiny-llama", packed)
    form = await asyncio.to_thread(make_ready, packed, Target(engine, ranks=1))
    async with sllm.AsyncClient(one_node.control.address) as client:
        found = {}
        for name, source in (("plain", models / "tiny-llama"), ("packed", packed)):
            url = f"file://{source}"
            await client.deploy(name, url, engine=engine, keep_alive=600.0, timeout=SECONDS)
            result = await client.complete(
                name, PROMPT, max_tokens=60, temperature=0.0, timeout=SECONDS
            )
            found[name] = result.token_ids
        assert found["packed"] == found["plain"]
        (node,) = await client.nodes()
        (used,) = [one for one in node.copies if one.made_of == digest and one.tier == "DRAM"]
        assert used.leased
        assert used.form
        assert (used.form.name, used.form.engine, used.form.dtype) == (
            form.name,
            engine,
            "float32",
        )
        assert used.form.versions == form.versions
        for name in found:
            await client.delete(name)
