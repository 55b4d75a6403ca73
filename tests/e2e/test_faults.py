"""Parts killed or stopped under load: callers get what they asked for; all works again."""

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import sllm
from sllm import errors
from tests.e2e.cluster import Cluster, running
from tests.e2e.generations import LEAVING, all_went_on, ask, on_one_instance
from tests.support import assert_eventually

CALLERS = 8
ANSWER_SECONDS = 60.0
PINGS_SECONDS = 11.0
"""After this time without an answer to a ping, one end of a connection gives it up."""
SETUP_SECONDS = 150.0
"""A node tries the model once its zygote has imported what it needs."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[Cluster]:
    """Two nodes and a deployment."""
    with running(tmp_path_factory.mktemp("pair")) as cluster:
        cluster.client.deploy(
            "busy", f"file://{models / 'tiny-llama'}", keep_alive=600.0, timeout=SETUP_SECONDS
        )
        yield cluster


@pytest.fixture
def loaded(pair: Cluster) -> Cluster:
    """All parts are there, whatever became of them before, and one instance that was used."""
    pair.restart_dead()
    pair.client.complete("busy", "Hello", max_tokens=1, timeout=ANSWER_SECONDS)
    pair.wait_for_instances(1, "busy")
    return pair


async def _callers(client: sllm.AsyncClient) -> list[asyncio.Task[sllm.Result]]:
    """Requests that are under way: each has had a token."""
    streams = [
        client.generate("busy", f"Caller {index}", seed=index, max_tokens=220, ignore_eos=True)
        for index in range(CALLERS)
    ]
    for stream in streams:
        async for event in stream:
            if isinstance(event, sllm.Tokens):
                break
    return [asyncio.create_task(stream.result()) for stream in streams]


async def _all_answered(
    tasks: list[asyncio.Task[sllm.Result]],
) -> list[sllm.Result | BaseException]:
    done, pending = await asyncio.wait(tasks, timeout=ANSWER_SECONDS)
    assert not pending, "callers hang"
    outcomes = await asyncio.gather(*done, return_exceptions=True)
    for outcome in outcomes:
        assert isinstance(outcome, sllm.Result | errors.SllmError), repr(outcome)
    return outcomes


async def _all_whole(
    client: sllm.AsyncClient, tasks: list[asyncio.Task[sllm.Result]], *, moved: bool = True
) -> list[sllm.Result]:
    """Every caller gets what it would have got undisturbed."""
    outcomes = await _all_answered(tasks)
    undisturbed = await asyncio.gather(*await _callers(client))
    for outcome, expected in zip(await asyncio.gather(*tasks), undisturbed, strict=True):
        assert outcome.token_ids == expected.token_ids
        assert outcome.text == expected.text
        assert bool(outcome.migrations) or not moved
    assert len(outcomes) == CALLERS
    return undisturbed


async def _signal(cluster: Cluster, instance: sllm.Instance, number: int) -> None:
    await asyncio.to_thread(cluster.signal_worker, instance.instance_id, number)


async def _works_again(client: sllm.AsyncClient) -> None:
    async def answered() -> bool:
        try:
            result = await client.complete("busy", "Back?", max_tokens=2, timeout=20.0)
        except errors.Unavailable:
            return False
        return result.usage.completion_tokens > 0

    await assert_eventually(answered, timeout=40.0)


async def test_a_killed_worker(loaded: Cluster) -> None:
    async with sllm.AsyncClient(loaded.control.address) as client:
        tasks = await _callers(client)
        (instance,) = await client.instances()
        await _signal(loaded, instance, signal.SIGKILL)
        await _all_whole(client, tasks)
        (after,) = await client.instances()
        assert after.instance_id != instance.instance_id
        result = await client.complete("busy", "Weights?", max_tokens=1)
        assert not result.receipt.cold


async def test_a_worker_killed_before_any_token(loaded: Cluster) -> None:
    async with sllm.AsyncClient(loaded.control.address) as client:
        expected = await client.complete("busy", "First", max_tokens=5, temperature=0.0)
        (instance,) = await client.instances()
        await _signal(loaded, instance, signal.SIGSTOP)
        streams = [
            client.generate("busy", "First", max_tokens=5, temperature=0.0) for _ in range(CALLERS)
        ]
        tasks = [asyncio.create_task(stream.result()) for stream in streams]

        async def all_there() -> bool:
            found = await client.instances()
            return sum(one.running_requests for one in found) == CALLERS

        await assert_eventually(all_there)
        await _signal(loaded, instance, signal.SIGKILL)
        outcomes = await _all_answered(tasks)
        assert [getattr(one, "text", one) for one in outcomes] == [expected.text] * CALLERS


async def test_the_weights_outlive_a_killed_worker(loaded: Cluster) -> None:
    async with sllm.AsyncClient(loaded.control.address) as client:
        (instance,) = await client.instances()
        await _signal(loaded, instance, signal.SIGKILL)

        async def gone() -> bool:
            return not await client.instances()

        await assert_eventually(gone)
        result = await client.complete("busy", "Weights?", max_tokens=1)
    assert result.receipt.cold
    assert result.receipt.from_tier == "DRAM"


async def test_a_killed_node(loaded: Cluster) -> None:
    async with sllm.AsyncClient(loaded.control.address) as client:
        tasks = await _callers(client)
        (instance,) = await client.instances()
        node = loaded.node_of(instance.node_id)
        left = node.descendants()
        node.kill()
        await _all_whole(client, tasks)
        await assert_eventually(lambda: not any(process.is_running() for process in left))
        node.restart()
        await asyncio.to_thread(loaded.wait_for_nodes, 2)
        await _works_again(client)


async def test_a_killed_control_plane(loaded: Cluster) -> None:
    async with sllm.AsyncClient(loaded.control.address) as client:
        tasks = await _callers(client)
        (instance,) = await client.instances()
        loaded.control.kill()
        loaded.control.restart()
        await _all_whole(client, tasks, moved=False)
        await asyncio.to_thread(loaded.wait_for_nodes, 2)
        assert [deployment.name for deployment in await client.deployments()] == ["busy"]
        await _works_again(client)
        (after,) = await client.instances()
        assert after.instance_id == instance.instance_id, "a running instance was started anew"


async def test_a_node_stopped_past_its_lease_and_continued(loaded: Cluster) -> None:
    async with sllm.AsyncClient(loaded.control.address) as client:
        stream = client.generate("busy", "On and on", max_tokens=200, ignore_eos=True, seed=1)
        async for event in stream:
            if isinstance(event, sllm.Tokens):
                break
        (instance,) = await client.instances()
        stopped = loaded.node_of(instance.node_id)
        stopped.process.send_signal(signal.SIGSTOP)
        long_enough = asyncio.create_task(asyncio.sleep(PINGS_SECONDS))
        try:
            queued = asyncio.create_task(client.complete("busy", "Queued", max_tokens=2))
            result = await asyncio.wait_for(stream.result(), ANSWER_SECONDS)
            assert result.usage.completion_tokens
            served = await asyncio.wait_for(queued, ANSWER_SECONDS)
            assert served.receipt.node_id != stopped.name
            assert [node.node_id for node in await client.nodes()] != [stopped.name]
            (elsewhere,) = await client.instances()
            await long_enough
        finally:
            stopped.process.send_signal(signal.SIGCONT)
        await asyncio.to_thread(loaded.wait_for_nodes, 2)
        await asyncio.to_thread(loaded.wait_for_instances, 1)  # one of two is ended again
        (left,) = await client.instances()
        assert left.worker_pid in (elsewhere.worker_pid, instance.worker_pid)
        again = await client.complete("busy", "Back", max_tokens=2, timeout=ANSWER_SECONDS)
        assert again.usage.completion_tokens == 2


async def test_a_node_that_is_asked_to_end_hands_over_what_it_runs(
    loaded: Cluster, slower: Path
) -> None:
    name = LEAVING["deployment"]
    async with sllm.AsyncClient(loaded.control.address) as client:
        await client.deploy(name, f"file://{slower}", keep_alive=600.0)
        expected = await asyncio.gather(
            *(ask(client, number, **LEAVING).result() for number in range(3))
        )
        node_id, streams = await on_one_instance(client, 3)
        ending = asyncio.create_task(asyncio.to_thread(loaded.node_of(node_id).stop))
        try:
            await all_went_on(streams, expected, node_id)
        finally:
            status = await ending
        assert status == 0
        await client.delete(name)
