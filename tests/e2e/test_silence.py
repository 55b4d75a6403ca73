"""A network that falls silent: its ends notice by themselves, and streams go on elsewhere."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio

import sllm
from sllm import errors
from tests.e2e.cluster import START_TIMEOUT, running
from tests.e2e.generations import ask, read_to, same
from tests.e2e.wire import Wire
from tests.support import assert_eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECONDS = 60.0
TOKENS = 300


class Silent:
    """Two nodes with an instance each, which all others reach by wires."""

    def __init__(self, client: sllm.AsyncClient, wires: dict[str, Wire]) -> None:
        self.client = client
        self.wires = wires

    async def idle(self) -> bool:
        """Whether both instances are ready, and run nothing."""
        found = await self.client.instances()
        return [(one.state, one.running_requests) for one in found] == [("READY", 0)] * 2


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def silent(tmp_path_factory: pytest.TempPathFactory, models: Path) -> AsyncIterator[Silent]:
    with running(
        tmp_path_factory.mktemp("silent"), node_options=["--advertise", "127.0.0.2"]
    ) as cluster:
        async with AsyncExitStack() as stack:
            wires = {node.name: Wire(node.address) for node in cluster.nodes}
            for node in cluster.nodes:
                await wires[node.name].start(node.address.replace("127.0.0.1", "127.0.0.2"))
                stack.push_async_callback(wires[node.name].stop)
            client = await stack.enter_async_context(sllm.AsyncClient(cluster.control.address))
            source = f"file://{models / 'tiny-llama'}"
            await client.deploy("moving", source, min_replicas=2, max_replicas=2)
            silent = Silent(client, wires)
            await assert_eventually(silent.idle, timeout=START_TIMEOUT)
            yield silent


@pytest.mark.parametrize("party", ["who serves it", "its source", "its destination"])
async def test_a_way_to_a_node_falls_silent(silent: Silent, party: str) -> None:
    client, wires = silent.client, silent.wires
    await assert_eventually(silent.idle, timeout=SECONDS)
    expected = await ask(client, 0, max_tokens=TOKENS).result()
    stream = ask(client, 0, max_tokens=TOKENS)
    while not isinstance(event := await stream.receive(), sllm.Started):
        assert event is not None
    (other,) = wires.keys() - {event.node_id}
    await read_to(stream, 5)
    moves = party != "who serves it"
    moving = asyncio.create_task(_move(client, stream.request_id, other)) if moves else None
    if moving:
        await asyncio.sleep(0)  # it is asked for
    wires[other if party == "its destination" else event.node_id].silence()
    try:
        async with asyncio.timeout(SECONDS):
            same([await stream.result()], [expected])
            if moving:
                await moving
    finally:
        for wire in wires.values():
            wire.mend()


async def _move(
    client: sllm.AsyncClient, request_id: str, to: str
) -> sllm.Migration | errors.SllmError:
    """What has come of it; what matters is what becomes of the generation."""
    try:
        return await client.migrate(request_id=request_id, to_node=to, timeout=SECONDS)
    except errors.SllmError as error:
        return error
