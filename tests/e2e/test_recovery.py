"""Parts killed in turn under load: what was not on them goes on undisturbed."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import sllm
from sllm import errors
from tests.e2e.cluster import Cluster, Part, running
from tests.support import assert_eventually

FAMILIES = {"a": "tiny-llama", "b": "tiny-opt", "c": "tiny-qwen2"}
SECONDS = 60.0


class Load:
    """Callers that ask for every deployment all the time."""

    def __init__(self, client: sllm.AsyncClient) -> None:
        self.served: dict[str, int] = defaultdict(int)
        self.failed: dict[str, list[errors.SllmError]] = defaultdict(list)
        self._client = client

    async def ask(self, name: str) -> None:
        """One request after the other; each is answered, one way or the other."""
        while True:
            try:
                await self._client.complete(
                    name, "Load", max_tokens=20, ignore_eos=True, timeout=SECONDS
                )
                self.served[name] += 1
            except errors.SllmError as error:
                self.failed[name].append(error)
                await asyncio.sleep(0.1)  # what a caller that is told to try again would do

    async def more(self, *names: str) -> None:
        """Returns once each of these has been served again."""
        before = dict(self.served)
        await assert_eventually(
            lambda: all(self.served[name] > before.get(name, 0) + 1 for name in names),
            timeout=SECONDS,
        )


@asynccontextmanager
async def loaded(client: sllm.AsyncClient) -> AsyncIterator[Load]:
    load = Load(client)
    async with asyncio.TaskGroup() as group:
        asking = [group.create_task(load.ask(name)) for name in FAMILIES for _ in range(2)]
        yield load
        for task in asking:
            task.cancel()
    told = [error for failures in load.failed.values() for error in failures]
    assert not [error for error in told if isinstance(error, errors.DeadlineExceeded)], "it hung"


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[Cluster]:
    """Three nodes, each of them filled by an instance of a deployment of its own."""
    with running(tmp_path_factory.mktemp("trio"), nodes=3, kv_mib=64) as cluster:
        for name, family in FAMILIES.items():
            source = f"file://{models / family}"
            cluster.client.deploy(name, source, min_replicas=1, kv_cache_tokens=10**6)
            cluster.wait_for_instances(1, name)
        yield cluster


@pytest.fixture
def trio(filled: Cluster) -> Cluster:
    """All of it is there, whatever became of it before."""
    filled.restart_dead()
    filled.wait_for_instances(len(FAMILIES))
    return filled


async def _pids(client: sllm.AsyncClient) -> dict[str, int]:
    """Of the ready instances' workers, by instance."""
    ready = [one for one in await client.instances() if one.state == "READY"]
    return {one.instance_id: one.worker_pid for one in ready}


async def _on(client: sllm.AsyncClient, node: Part) -> set[str]:
    """The deployments with an instance on a node."""
    return {one.deployment for one in await client.instances() if one.node_id == node.name}


async def test_nodes_killed_in_turn(trio: Cluster) -> None:
    """Two of the three: the third one would be as the second, after one that has come back."""
    async with sllm.AsyncClient(trio.control.address) as client, loaded(client) as load:
        await load.more(*FAMILIES)
        for node in trio.nodes[:2]:
            lost = await _on(client, node)
            failed = {name: len(load.failed[name]) for name in FAMILIES}
            elsewhere = {
                one.instance_id: one.worker_pid
                for one in await client.instances()
                if one.node_id != node.name
            }
            node.kill()
            await load.more(*(FAMILIES.keys() - lost))
            node.restart()
            await asyncio.to_thread(trio.wait_for_nodes, 3)
            await load.more(*FAMILIES)
            assert (await _pids(client)).items() >= elsewhere.items(), "an instance was restarted"
            for name in FAMILIES.keys() - lost:
                assert len(load.failed[name]) == failed[name], "it was not on that node"


async def test_the_control_plane_killed(trio: Cluster) -> None:
    async with sllm.AsyncClient(trio.control.address) as client, loaded(client) as load:
        await load.more(*FAMILIES)
        before = await _pids(client)
        trio.control.kill()
        trio.control.restart()
        await asyncio.to_thread(trio.wait_for_nodes, 3)
        await load.more(*FAMILIES)
        assert await _pids(client) == before, "an instance was not adopted"
        told = {type(error) for failures in load.failed.values() for error in failures}
        assert all(issubclass(kind, errors.Unavailable) for kind in told), told
