"""Three control planes on an etcd, and a node: the one that leads is killed, stopped, or leaves."""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from serverlessllm.v1 import node_service_pb2 as pb
from serverlessllm.v1.node_service_pb2_grpc import NodeServiceStub

import sllm
from sllm import errors, rpc
from sllm.control.config import EtcdConfig
from sllm.control.election.ballot import Ballot, Leader
from sllm.control.etcd.client import Etcd
from tests.e2e.cluster import START_TIMEOUT, Part
from tests.etcd import running_etcd
from tests.support import assert_eventually, wait_until

SECONDS = 60.0
TOKENS = 400
PROMPT = "Once upon a time"


@dataclass
class Planes:
    """The parts, and who leads."""

    etcd: EtcdConfig
    parts: list[Part]
    node: Part

    def look(self) -> Leader | None:
        with closing(Etcd(self.etcd)) as etcd:
            return Ballot(etcd, "", "", 3).look()

    def leader(self, but_not: Part | None = None) -> tuple[Part, int]:
        """Who leads, and in which term; waits for another one than `but_not`."""
        found: list[tuple[Part, int]] = []

        def leads() -> bool:
            leader = self.look()
            found[:] = [
                (one, leader.term)
                for one in self.parts
                if leader and one.address == leader.address and one is not but_not
            ]
            return bool(found)

        wait_until(leads, START_TIMEOUT)
        return found[0]

    def addresses(self, first: Part) -> str:
        """Of all, one of them first."""
        return ",".join([first.address, *(one.address for one in self.parts if one is not first)])

    def restart_dead(self) -> None:
        for part in self.parts:
            if not part.is_running():
                part.restart()


@pytest.fixture(scope="module")
def planes(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[Planes]:
    directory = tmp_path_factory.mktemp("planes")
    with ExitStack() as stack:
        etcd = stack.enter_context(running_etcd()).config()
        store = f"--store=etcd://{etcd.endpoints[0]}{etcd.prefix}"
        parts = [Part(f"control-{one}", directory, ["control", store]) for one in range(3)]
        for part in parts:
            stack.callback(part.end)
        for part in parts:
            part.wait_until_up()
        where = [f"--control={','.join(one.address for one in parts)}", f"--dir={directory / 'n'}"]
        sizes = ["--dram=256MiB", "--ssd=1GiB", "--kv=256MiB", "--engines=transformers"]
        node = Part("node", directory, ["node", "--id=n", *where, *sizes])
        stack.callback(node.end)
        node.wait_until_up()
        node.wait_for_zygotes()
        planes = Planes(etcd, parts, node)
        with sllm.Client(planes.addresses(parts[0])) as client:
            wait_until(client.nodes, START_TIMEOUT)
            client.deploy("tiny", f"file://{models / 'tiny-llama'}", min_replicas=1)
            wait_until(lambda: [one.worker_pid for one in client.instances()], START_TIMEOUT)
        yield planes
        assert not any(part.stop() for part in (node, *parts) if part.is_running())
        for part in (node, *parts):
            part.check_log()


@pytest.fixture
def trio(planes: Planes) -> Planes:
    planes.restart_dead()
    planes.leader()
    return planes


async def workers(client: sllm.AsyncClient) -> list[int]:
    return [one.worker_pid for one in await client.instances() if one.state == "READY"]


async def undisturbed(client: sllm.AsyncClient) -> tuple[int, ...]:
    """What is generated if nothing happens."""
    result = await client.complete(
        "tiny", PROMPT, max_tokens=TOKENS, ignore_eos=True, temperature=0.0
    )
    return result.token_ids


async def read_while(
    client: sllm.AsyncClient, part: Part, number: signal.Signals
) -> tuple[int, ...]:
    """The tokens of a stream during which a part gets a signal."""
    stream = client.generate(
        "tiny", PROMPT, max_tokens=TOKENS, ignore_eos=True, temperature=0.0, timeout=SECONDS
    )
    signalled = False
    async for event in stream:
        if isinstance(event, sllm.Tokens) and not signalled:
            part.process.send_signal(number)
            signalled = True
    return (await stream.result()).token_ids


async def test_the_leader_killed(trio: Planes) -> None:
    leader, term = await asyncio.to_thread(trio.leader)
    async with sllm.AsyncClient(trio.addresses(leader)) as client:
        await assert_eventually(lambda: workers(client), timeout=SECONDS)
        expected, before = await undisturbed(client), await workers(client)
        assert await read_while(client, leader, signal.SIGKILL) == expected
        leader.reap()
        assert [one.name for one in await client.deployments()] == ["tiny"]
        assert await workers(client) == before, "an instance was started anew"
    _, later = await asyncio.to_thread(trio.leader, leader)
    assert later > term


async def test_the_leader_leaves(trio: Planes) -> None:
    leader, _ = await asyncio.to_thread(trio.leader)
    async with sllm.AsyncClient(trio.addresses(leader)) as client:
        await assert_eventually(lambda: workers(client), timeout=SECONDS)
        expected, before = await undisturbed(client), await workers(client)
        assert await read_while(client, leader, signal.SIGTERM) == expected
        assert await workers(client) == before, "an instance was started anew"
    assert leader.reap() == 0


async def test_the_leader_stands_still_for_longer_than_its_lease(trio: Planes) -> None:
    """When it goes on, it gives no orders, and the node would take none of them."""
    leader, term = await asyncio.to_thread(trio.leader)
    follower = next(one for one in trio.parts if one is not leader)
    async with sllm.AsyncClient(follower.address) as client:
        await assert_eventually(lambda: workers(client), timeout=SECONDS)
        expected, before = await undisturbed(client), await workers(client)
        try:
            assert await read_while(client, leader, signal.SIGSTOP) == expected
            _, later = await asyncio.to_thread(trio.leader, leader)
            assert later > term
            (instance,) = await client.instances()
            (node,) = await client.nodes()
            # Whoever leads now has told the node so, and has given it no order yet.
            await assert_eventually(lambda: _refuses(node.address, term))
            for stale in (term, None):
                with pytest.raises(errors.StaleTerm):
                    await _stop(node.address, instance.instance_id, stale)
        finally:
            leader.process.send_signal(signal.SIGCONT)
        await assert_eventually(lambda: "control.leads_no_more" in leader.log_text())
        async with sllm.AsyncClient(leader.address) as former:
            assert await undisturbed(former) == expected, "it does not pass on"
        assert await workers(client) == before, "an instance was stopped"


async def _refuses(node: str, term: int) -> bool:
    """Whether it takes no orders of a term, by one that would change nothing."""
    try:
        await _stop(node, "nothing", term)
    except errors.StaleTerm:
        return True
    return False


async def _stop(node: str, instance_id: str, term: int | None) -> None:
    """The order of a control plane of a term."""
    async with rpc.channel(node) as channel:
        request = pb.StopInstanceRequest(instance_id=instance_id)
        with rpc.typed_errors():
            await NodeServiceStub(channel).StopInstance(
                request, metadata=rpc.order_metadata(term), timeout=SECONDS
            )
