"""Requests that are served while the weights are still on their way from the disk."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from make_models import make_model
from serverlessllm.v1 import node_service_pb2 as node_pb
from serverlessllm.v1 import types_pb2 as types_pb
from serverlessllm.v1.node_service_pb2_grpc import NodeServiceStub

import sllm
from bench.slow_disk import NoCompiler, slow_disk
from sllm.checkpoint.format.manifest_file import read_manifest
from sllm.node.tiers import first_use
from sllm.node.tiers.first_use import chunk_order
from tests.checkpoint.checkpoints import flip_bit
from tests.e2e.cluster import Cluster, running
from tests.e2e.workers import sockets, status
from tests.support import assert_eventually

SECONDS = 120.0
PROMPT = "Once upon a time"
NAME = "early"
TOKENS = 24


@dataclass(frozen=True, slots=True)
class Begun:
    client: sllm.AsyncClient
    answer: asyncio.Task[sllm.Result]
    copy: sllm.CheckpointCopy
    """On SSD."""
    instance: sllm.Instance


class Gate:
    """How many bytes of checkpoints the node's disk gives: see `bench.slow_disk`."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def hold(self, size: int) -> None:
        """Gives so many bytes, and no others."""
        whole = self.file.with_suffix(".new")
        whole.write_text(str(size))
        whole.rename(self.file)

    def open(self) -> None:
        self.file.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    scratch = tmp_path_factory.mktemp("disk")
    gate = Gate(scratch / "gives")
    try:
        with slow_disk(scratch, gives=gate.file):
            yield gate
    except NoCompiler as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def one_node(gate: Gate, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A node whose disk can be held up, with a model of four chunks that has run once."""
    directory = tmp_path_factory.mktemp("early")
    model = make_model("small-llama", directory / "model")
    with running(directory, nodes=1, node_options=["--no-ready-made", "--threads=1"]) as cluster:
        source = f"file://{model}"
        cluster.client.deploy(NAME, source, pack=True, keep_alive=600.0, timeout=SECONDS)
        cluster.client.complete(NAME, PROMPT, max_tokens=1, timeout=SECONDS)
        cluster.client.deploy(NAME, source, pack=True, keep_alive=0.0)
        yield cluster


@asynccontextmanager
async def begun(cluster: Cluster, gate: Gate) -> AsyncIterator[Begun]:
    """A request whose first layers are computed while the last chunk is withheld."""
    async with sllm.AsyncClient(cluster.control.address) as client:

        async def is_idle() -> bool:
            return not await client.instances()

        await assert_eventually(is_idle, SECONDS)
        (node,) = await client.nodes()
        evict(node)
        (copy,) = [one for one in node.copies if one.tier == "SSD"]
        gate.hold(copy.size_bytes - 1)
        stream = client.generate(NAME, PROMPT, max_tokens=TOKENS, temperature=0.0)
        answer = asyncio.create_task(stream.result())

        async def computes() -> bool:
            return any(status(one).counters.steps for one in sockets(cluster))

        try:
            await assert_eventually(computes, SECONDS)
            (instance,) = await client.instances()
            assert instance.state == "READY"
            assert not answer.done()
            yield Begun(client, answer, copy, instance)
        finally:
            gate.open()
            await asyncio.gather(answer, return_exceptions=True)


def evict(node: sllm.Node) -> None:
    """All weights out of memory."""
    with grpc.insecure_channel(node.address) as channel:
        for copy in node.copies:
            if copy.tier == "DRAM":
                request = node_pb.EvictRequest(digest=copy.digest, tier=types_pb.TIER_DRAM)
                NodeServiceStub(channel).Evict(request, timeout=SECONDS)


async def undisturbed(cluster: Cluster) -> sllm.Result:
    """The same request, with all weights in memory."""
    async with sllm.AsyncClient(cluster.control.address) as client:
        return await client.complete(NAME, PROMPT, max_tokens=TOKENS, temperature=0.0)


async def test_a_prefill_begins_before_the_last_chunk_is_there(
    one_node: Cluster, gate: Gate
) -> None:
    async with begun(one_node, gate) as early:
        gate.open()
        result = await asyncio.wait_for(early.answer, SECONDS)
    same = await undisturbed(one_node)
    assert (result.token_ids, result.text) == (same.token_ids, same.text)
    assert result.receipt.from_tier == "SSD"
    reads = [one for one in result.receipt.phases if one.kind == "READ_SSD"]
    assert sum(one.size_bytes or 0 for one in reads) == early.copy.size_bytes
    (prefill,) = [one for one in result.receipt.phases if one.kind == "PREFILL"]
    assert prefill.start < max(one.start + one.duration for one in reads)
    assert not result.migrations


async def test_a_chunk_that_turns_out_corrupt_costs_the_caller_nothing(
    one_node: Cluster, gate: Gate
) -> None:
    """The request goes on at an instance that has all of its weights, which were mended."""
    async with begun(one_node, gate) as early:
        where = one_node.directory / "node-0" / "checkpoints" / early.copy.digest
        manifest = read_manifest(where)
        withheld = chunk_order(manifest, first_use.read(where, manifest)).chunks[-1]
        flip_bit(where / "partition-00000.bin", withheld * manifest.partitions[0].chunk_size + 1)
        gate.open()
        result = await asyncio.wait_for(early.answer, SECONDS)
    assert "instance.weights_lost" in one_node.nodes[0].log_text()
    same = await undisturbed(one_node)
    assert (result.token_ids, result.text) == (same.token_ids, same.text)


async def test_a_worker_that_is_killed_meanwhile_costs_the_caller_nothing(
    one_node: Cluster, gate: Gate
) -> None:
    async with begun(one_node, gate) as early:
        os.kill(early.instance.worker_pid, signal.SIGKILL)
        gate.open()
        result = await asyncio.wait_for(early.answer, SECONDS)
    same = await undisturbed(one_node)
    assert (result.token_ids, result.text) == (same.token_ids, same.text)

    def nothing_is_held() -> bool:
        (node,) = one_node.client.nodes()
        return not any(copy.leased for copy in node.copies)

    await assert_eventually(nothing_is_held, SECONDS)
