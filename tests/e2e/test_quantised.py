"""Quantised weights through the whole system: served, moved, failed over, and made ready."""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import sllm
from sllm import errors
from tests.e2e.cluster import Cluster
from tests.e2e.generations import ask, busiest, moved, read_to, same, two_instances
from tests.node.worker.engines import needs_vllm
from tests.quantised import KINDS, needs_int4, quantised

pytestmark = [needs_vllm, needs_int4]
_, _, INT4, _ = KINDS


@pytest.fixture(scope="module")
def model(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = shutil.copytree(models / "tiny-llama", tmp_path_factory.mktemp("int4") / "model")
    quantised(directory, INT4)
    return directory


@pytest.fixture(scope="module")
def pair(cluster: Cluster, model: Path) -> Iterator[Cluster]:
    """Two nodes with an instance each, on the only engine that runs it."""
    with two_instances(cluster, "moving", model, "auto"):
        yield cluster


async def test_it_moves_and_fails_over_and_gives_the_same(pair: Cluster) -> None:
    async with sllm.AsyncClient(pair.control.address) as client:
        (deployment,) = await client.deployments()
        assert deployment.engine == "vllm"
        expected = await ask(client, 1).result()
        assert expected.usage.completion_tokens == 300
        stream, migration = await moved(client, lambda: ask(client, 1), 40)
        same([await stream.result()], [expected])
        assert [one.outcome for one in migration.requests] == ["MOVED"]
        stream = ask(client, 1)
        await read_to(stream, 10)
        pair.signal_worker((await busiest(client)).instance_id, signal.SIGKILL)
        same([await stream.result()], [expected])


async def test_others_are_refused_on_the_engine_that_does_not_run_them(
    cluster: Cluster, model: Path
) -> None:
    async with sllm.AsyncClient(cluster.control.address) as client:
        with pytest.raises(errors.UnsupportedModel, match=r"quantised .* transformers does not"):
            await client.deploy("t", f"file://{model}", engine="transformers", timeout=120.0)
        with pytest.raises(errors.UnsupportedModel, match="takes no adapters"):
            await client.deploy(
                "t", f"file://{model}", engine="vllm", max_adapters=2, timeout=120.0
            )
