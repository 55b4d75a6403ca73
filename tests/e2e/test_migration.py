"""Live migration through the whole system: outputs are what they would have been."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from serverlessllm.v1 import migration_service_pb2 as pb
from serverlessllm.v1.migration_service_pb2_grpc import MigrationServiceStub

import sllm
from sllm import errors, rpc
from tests.e2e.cluster import Cluster
from tests.e2e.engines import SLOW_ON, by_turns, others_at_night
from tests.e2e.generations import (
    LEAVING,
    all_went_on,
    ask,
    moved,
    on_one_instance,
    read_to,
    same,
    steps,
    two_instances,
)

CAUGHT_SECONDS = 60.0
FAST_TRIES = 10
MORE_THAN_HALF = 300 * 2**20
"""Bytes, of what each node has for KV caches."""


@pytest.fixture(scope="module")
def pair(cluster: Cluster, models: Path, engine: str) -> Iterator[Cluster]:
    """Two nodes with an instance each of one deployment, which stay."""
    with two_instances(cluster, "moving", models / "tiny-llama", engine):
        yield cluster


@pytest.fixture
async def client(pair: Cluster) -> AsyncIterator[sllm.AsyncClient]:
    async with sllm.AsyncClient(pair.control.address) as client:
        yield client


async def move(
    client: sllm.AsyncClient, stream: sllm.AsyncStream, to_node: str | None = None
) -> sllm.Migration:
    return await client.migrate(request_id=stream.request_id, to_node=to_node)


@by_turns("at", 1, 33, 64, 180)
async def test_one_moves_at_any_step(client: sllm.AsyncClient, at: int) -> None:
    await one_moves(client, at, number=at % 2)


@pytest.mark.nightly  # `test_one_moves_at_any_step` has one of each kind
@others_at_night
@pytest.mark.parametrize(("number", "at"), [(1, 2), (0, 9), (1, 31), (0, 32), (1, 100), (0, 180)])
async def test_one_moves_at_any_step_between(
    client: sllm.AsyncClient, at: int, number: int
) -> None:
    await one_moves(client, at, number)


async def one_moves(client: sllm.AsyncClient, at: int, number: int) -> None:
    options: dict[str, Any] = {"logprobs": 1, "max_tokens": at + 120}
    expected = await ask(client, number, **options).result()
    stream, migration = await moved(client, lambda: ask(client, number, **options), at)
    result = await stream.result()

    same([result], [expected])
    assert result.logprobs is not None
    assert len(result.logprobs) == at + 120
    assert [each.outcome for each in migration.requests] == ["MOVED"]
    (one,) = result.migrations
    assert one.to_node_id == migration.node_id != one.from_node_id
    assert one.reason == "OPERATOR"


@by_turns("number", 0, 1)
@pytest.mark.parametrize("at", steps(60))
async def test_what_is_said_of_tokens_goes_along_at_any_step(
    client: sllm.AsyncClient, at: int, number: int
) -> None:
    options: dict[str, Any] = {
        "repetition_penalty": 1.1,
        "presence_penalty": 0.3,
        "frequency_penalty": 0.4,
        "logit_bias": {40: 2.0, 50: -3.0},
        "bad_words": ["the", "of"],
        "allowed_token_ids": list(range(5, 700)),
        "min_tokens": 120,
        "max_tokens": 200,
    }
    expected = await ask(client, number, **options).result()
    stream, migration = await moved(client, lambda: ask(client, number, **options), at)
    same([await stream.result()], [expected])
    assert [one.outcome for one in migration.requests] == ["MOVED"]
    plain = await ask(client, number, max_tokens=200).result()
    assert plain.token_ids != expected.token_ids


@by_turns("number", 0, 1)
async def test_there_and_back_again(client: sllm.AsyncClient, number: int) -> None:
    options: dict[str, Any] = {"max_tokens": 400}
    expected = await ask(client, number, **options).result()
    stream = ask(client, number, **options)
    await read_to(stream, 3)
    for _ in range(4):
        await move(client, stream)
        await read_to(stream, 5)
    result = await stream.result()
    same([result], [expected])
    nodes = [one.to_node_id for one in result.migrations]
    assert len(nodes) == 4
    assert nodes[0] == nodes[2] != nodes[1] == nodes[3]


@by_turns("count", 4, 16)
async def test_many_move_together_there_and_back(client: sllm.AsyncClient, count: int) -> None:
    options: dict[str, Any] = {"max_tokens": 400}
    expected = await asyncio.gather(*(ask(client, n, **options).result() for n in range(count)))
    for _ in range(FAST_TRIES):
        streams = [ask(client, n, **options) for n in range(count)]
        outcomes = [await move_all(client, streams, tokens) for tokens in (20, 5)]
        results = await asyncio.gather(*(stream.result() for stream in streams))
        same(results, expected)
        if outcomes == [{"MOVED"}, {"MOVED"}]:
            break
        # On a fast machine some have ended before their turn came; nothing else may happen to them.
        assert set().union(*outcomes) <= {"MOVED", "ENDED"}
    assert outcomes == [{"MOVED"}, {"MOVED"}]
    for one in results:
        there, back = one.migrations
        assert there.from_node_id == back.to_node_id != there.to_node_id


async def move_all(
    client: sllm.AsyncClient, streams: Sequence[sllm.AsyncStream], tokens: int
) -> set[str]:
    """Moves all at once after so many tokens; how that ended."""

    async def one(stream: sllm.AsyncStream) -> str:
        try:
            return (await move(client, stream)).requests[0].outcome
        except errors.RequestNotFound:
            return "ENDED"

    await asyncio.gather(*(read_to(stream, tokens) for stream in streams))
    return set(await asyncio.gather(*(one(stream) for stream in streams)))


@others_at_night
async def test_a_stop_string_is_met_across_a_migration(client: sllm.AsyncClient) -> None:
    free = await ask(client, 1).result()
    stop = free.text[len(free.text) // 2 :][:6]
    expected = await ask(client, 1, stop=[stop]).result()
    for at in range(1, max(2, len(expected.token_ids) - 12), 37):
        stream = ask(client, 1, stop=[stop])
        await read_to(stream, at)
        try:
            await move(client, stream)
        except errors.RequestNotFound:
            continue  # it has met the stop string first
        result = await stream.result()
        same([result], [expected])
        assert result.stop == stop


@others_at_night
async def test_they_go_on_when_their_worker_is_killed(
    client: sllm.AsyncClient, pair: Cluster
) -> None:
    expected = await asyncio.gather(*(ask(client, number).result() for number in range(4)))
    streams = [ask(client, number) for number in range(4)]
    for stream in streams:
        await read_to(stream, 20)
    victim = (await client.instances())[0]
    pair.signal_worker(victim.instance_id, signal.SIGKILL)
    same([await stream.result() for stream in streams], expected)
    await asyncio.to_thread(pair.wait_for_instances, 2, "moving")


@others_at_night
async def test_they_are_read_on_when_the_control_plane_is_killed(
    client: sllm.AsyncClient, pair: Cluster
) -> None:
    expected = await asyncio.gather(*(ask(client, number).result() for number in range(4)))
    before = {one.instance_id: one.worker_pid for one in await client.instances()}
    streams = [ask(client, number) for number in range(4)]
    for stream in streams:
        await read_to(stream, 20)
    await asyncio.to_thread(pair.control.kill)
    await asyncio.to_thread(pair.control.restart)
    same([await stream.result() for stream in streams], expected)
    await asyncio.to_thread(pair.wait_for_nodes, 2)
    await asyncio.to_thread(pair.wait_for_instances, 2, "moving")
    after = {one.instance_id: one.worker_pid for one in await client.instances()}
    assert after == before, "they were not adopted"


@others_at_night
async def test_a_caller_that_leaves_meanwhile(client: sllm.AsyncClient, pair: Cluster) -> None:
    stream = ask(client, 0, max_tokens=400)
    await read_to(stream, 5)
    moving = asyncio.create_task(move(client, stream))
    await asyncio.sleep(0)
    await stream.cancel()
    await asyncio.gather(moving, return_exceptions=True)

    def idle() -> bool:
        return not any(one.running_requests for one in pair.client.instances())

    await asyncio.to_thread(_wait, idle)


def _wait(check: Any) -> None:
    from tests.support import wait_until

    wait_until(check, CAUGHT_SECONDS)


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ({"request_id": "nobody"}, errors.RequestNotFound),
        ({"instance_id": "nothing"}, errors.InstanceNotFound),
    ],
)
async def test_the_unknown_is_refused(
    client: sllm.AsyncClient, named: dict[str, str], expected: type[errors.SllmError]
) -> None:
    with pytest.raises(expected):
        await client.migrate(**named)  # type: ignore[arg-type]  # by name


@pytest.mark.parametrize("first", [None, pb.MigrationServiceMigrateRequest()])
async def test_a_migration_that_does_not_say_where_to_is_refused(
    client: sllm.AsyncClient, first: pb.MigrationServiceMigrateRequest | None
) -> None:
    node = (await client.nodes())[0]
    async with grpc.aio.insecure_channel(node.address) as channel:
        call = MigrationServiceStub(channel).Migrate(iter([first] if first else []), timeout=10)
        with pytest.raises(errors.InvalidArgument, match="open"), rpc.typed_errors():
            await call.read()


@others_at_night
async def test_bad_destinations_leave_it_undisturbed(client: sllm.AsyncClient) -> None:
    expected = await ask(client, 0).result()
    stream = ask(client, 0)
    while not isinstance(event := await stream.receive(), sllm.Started):
        assert event is not None
    here = event.node_id
    await read_to(stream, 3)
    with pytest.raises(errors.NodeNotFound):
        await move(client, stream, "nowhere")
    with pytest.raises(errors.InvalidArgument):
        await move(client, stream, here)
    result = await stream.result()
    same([result], [expected])
    assert not result.migrations
    with pytest.raises(errors.RequestNotFound):
        await move(client, stream)


@others_at_night
async def test_a_node_without_room_leaves_it_undisturbed(
    client: sllm.AsyncClient, models: Path, engine: str
) -> None:
    model = (await client.deployment("moving")).model
    tokens = MORE_THAN_HALF // model.kv_bytes_per_token
    for name in ("wide", "wider"):
        source = f"file://{models / 'tiny-llama'}"
        await client.deploy(name, source, engine=engine, min_replicas=1, kv_cache_tokens=tokens)
    expected = [await ask(client, 0, deployment=name).result() for name in ("wide", "wider")]
    streams = [ask(client, 0, deployment=name) for name in ("wide", "wider")]
    await asyncio.gather(*(read_to(stream, 3) for stream in streams))
    where = {one.deployment: one.node_id for one in await client.instances()}
    assert where["wide"] != where["wider"]
    with pytest.raises(errors.NoCapacity):
        await move(client, streams[0], where["wider"])
    results = [await stream.result() for stream in streams]
    same(results, expected)
    assert not [one for result in results for one in result.migrations]
    for name in ("wide", "wider"):
        await client.delete(name)


@pytest.fixture
async def leaving(
    client: sllm.AsyncClient, slower: Path, engine: str
) -> AsyncIterator[list[sllm.Result]]:
    """What the generations of another deployment are, if they stay where they are."""
    await client.deploy(LEAVING["deployment"], f"file://{slower}", engine=engine, keep_alive=600.0)
    yield await asyncio.gather(*(ask(client, number, **LEAVING).result() for number in range(3)))
    await client.delete(LEAVING["deployment"])


@pytest.mark.parametrize("engine", SLOW_ON, indirect=True)
async def test_a_drain_has_what_runs_go_on_elsewhere(
    client: sllm.AsyncClient, leaving: list[sllm.Result]
) -> None:
    node_id, streams = await on_one_instance(client, 3)
    drain = asyncio.create_task(client.drain(node_id))
    try:
        await all_went_on(streams, leaving, node_id)
    finally:  # others use the node, too
        await asyncio.wait_for(drain, CAUGHT_SECONDS)
        left = [one for one in await client.instances() if one.node_id == node_id]
        await client.undrain(node_id)
    assert not left
