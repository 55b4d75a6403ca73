"""One model on several devices, through the whole system; here these are processes."""

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import sllm
from sllm import errors
from tests.e2e.cluster import Cluster
from tests.e2e.generations import ask, busiest, moved, read_to, same, two_instances
from tests.e2e.reference import greedy
from tests.node.worker.engines import needs_vllm
from tests.support import assert_eventually

pytestmark = needs_vllm
SECONDS = 180.0
LONG: dict[str, Any] = {"deployment": "parted", "max_tokens": 200}


@pytest.fixture(scope="module")
def source(models: Path) -> str:
    return f"file://{models / 'tiny-llama'}"


@pytest.fixture
async def client(cluster: Cluster) -> AsyncIterator[sllm.AsyncClient]:
    async with sllm.AsyncClient(cluster.control.address) as client:
        yield client


@pytest.fixture(scope="module")
def pair(cluster: Cluster, models: Path) -> Iterator[Cluster]:
    """Two nodes with an instance of two processes each."""
    model = models / "tiny-llama"
    with two_instances(cluster, "parted", model, "vllm", tensor_parallel=2):
        yield cluster


async def test_a_deployment_changes_its_number_and_callers_notice_nothing(
    client: sllm.AsyncClient, cluster: Cluster, models: Path, tmp_path: Path
) -> None:
    """Roll-overs there and back, with the weights that are there: nothing is imported anew."""
    # A directory of its own: of one that others have packed too, a node has two forms.
    source = f"file://{shutil.copytree(models / 'tiny-llama', tmp_path / 'model')}"
    options: dict[str, Any] = {"keep_alive": 600.0, "timeout": SECONDS}
    expected = greedy(models / "tiny-llama", "Once upon a time", 40).token_ids
    digests = set()
    for count in (2, 1, 2):
        deployment = await client.deploy("changing", source, tensor_parallel=count, **options)
        assert (deployment.engine, deployment.tensor_parallel) == ("vllm", count)
        digests.add(deployment.model.digest)
        caller = asyncio.create_task(_until_on(client, count, expected))
        await asyncio.wait_for(caller, SECONDS)
    assert len(digests) == 1
    await client.delete("changing")
    await asyncio.to_thread(cluster.wait_for_instances, 0, "changing")


async def test_a_generation_moves_between_such_instances(
    client: sllm.AsyncClient, pair: Cluster
) -> None:
    expected = await ask(client, 0, **LONG).result()
    stream, migration = await moved(client, lambda: ask(client, 0, **LONG), 20)
    same([await stream.result()], [expected])
    assert [one.outcome for one in migration.requests] == ["MOVED"]


@pytest.mark.parametrize("victim", ["first", "other"])
async def test_requests_go_on_elsewhere_when_one_process_is_killed(
    client: sllm.AsyncClient, pair: Cluster, victim: str
) -> None:
    expected = await ask(client, 1, **LONG).result()
    stream = ask(client, 1, **LONG)
    await read_to(stream, 5)
    instance = await busiest(client, "parted")
    others = psutil.Process(instance.worker_pid).children()
    assert len(others) == 1
    os.kill(instance.worker_pid if victim == "first" else others[0].pid, signal.SIGKILL)
    result = await stream.result()
    same([result], [expected])
    assert [one.reason for one in result.migrations] == ["FAILOVER"]
    await assert_eventually(lambda: not any(map(psutil.pid_exists, _pids(instance, others))))
    await asyncio.to_thread(pair.wait_for_instances, 2, "parted")


async def test_the_memory_of_all_processes_is_in_the_books(
    client: sllm.AsyncClient, pair: Cluster
) -> None:
    async def counted() -> bool:
        found = await client.instances("parted")
        return all(
            one.own_bytes > psutil.Process(one.worker_pid).memory_full_info().uss * 1.2
            for one in found
        )

    await assert_eventually(counted, SECONDS)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (
            {"tensor_parallel": 3},
            errors.UnsupportedModel,
            "is 3, and the model has 4 attention heads",
        ),
        ({"tensor_parallel": 65}, errors.InvalidArgument, "from 1 to 64, it is 65"),
        ({"tensor_parallel": -1}, errors.InvalidArgument, "from 1 to 64, it is -1"),
        (
            {"tensor_parallel": 2, "engine": "transformers"},
            errors.InvalidArgument,
            "'transformers' runs a model on one device",
        ),
    ],
)
async def test_what_cannot_be_is_refused_before_anything_is_there(
    client: sllm.AsyncClient,
    source: str,
    options: dict[str, Any],
    error: type[errors.SllmError],
    words: str,
) -> None:
    with pytest.raises(error, match=words):
        await client.deploy("refused", source, timeout=SECONDS, **options)
    assert "refused" not in [one.name for one in await client.deployments()]


async def _until_on(client: sllm.AsyncClient, count: int, expected: tuple[int, ...]) -> None:
    """Asks again and again until all instances are of so many processes."""
    while True:
        result = await client.complete(
            "changing",
            "Once upon a time",
            max_tokens=40,
            temperature=0.0,
            ignore_eos=True,
            timeout=SECONDS,
        )
        assert result.token_ids == expected
        pids = [one.worker_pid for one in await client.instances("changing") if one.worker_pid]
        if pids and all(len(psutil.Process(pid).children()) == count - 1 for pid in pids):
            return


def _pids(instance: sllm.Instance, others: list[psutil.Process]) -> list[int]:
    return [instance.worker_pid, *(one.pid for one in others)]
