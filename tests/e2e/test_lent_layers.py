"""Requests that are answered while no node has the whole model: another one computes layers."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
import psutil
import pytest
from make_models import make_model

import sllm
from bench.slow_disk import NoCompiler, slow_disk
from tests.e2e.cluster import Cluster, Part, running
from tests.e2e.test_early_starts import Gate, evict
from tests.support import assert_eventually

pytestmark = pytest.mark.nightly  # its disk is slow, or nothing would be lent

SECONDS = 120.0
NAME = "lent"
PROMPT = "Once upon a time"
TOKENS = 300
DISK_BYTES_PER_SECOND = 15e6
"""So slow that a loan pays for a model of 57 MB."""


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    scratch = tmp_path_factory.mktemp("disk")
    gate = Gate(scratch / "gives")
    try:
        with slow_disk(scratch, bytes_per_second=DISK_BYTES_PER_SECOND, gives=gate.file):
            yield gate
    except NoCompiler as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def two_nodes(gate: Gate, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes on whose disks a model is that has run on both."""
    directory = tmp_path_factory.mktemp("lent")
    model = make_model("small-llama", directory / "model")
    with running(
        directory,
        control_options=["--lend-layers"],
        node_options=["--no-ready-made", "--threads=1"],
    ) as cluster:
        cluster.client.deploy(NAME, f"file://{model}", pack=True, keep_alive=0.0, timeout=SECONDS)
        for node in cluster.client.nodes():
            cluster.client.drain(node.node_id, timeout=SECONDS)
            cluster.client.complete(NAME, PROMPT, max_tokens=1, timeout=SECONDS)
            cluster.client.undrain(node.node_id)
        yield cluster


@dataclass(slots=True)
class Begun:
    client: sllm.AsyncClient
    tokens: list[int]
    """So far."""
    answer: "asyncio.Task[sllm.Result]"
    lender: Part
    workers: list[psutil.Process]
    """Those that the lender has forked for it."""


@asynccontextmanager
async def begun(cluster: Cluster, gate: Gate) -> AsyncIterator[Begun]:
    """A request that has tokens, while neither node has read all."""
    async with sllm.AsyncClient(cluster.control.address) as client:
        await assert_eventually(lambda: is_cold(cluster), SECONDS)
        before = {part.name: set(part.descendants()) for part in cluster.nodes}
        size = max(copy.size_bytes for node in cluster.client.nodes() for copy in node.copies)
        gate.hold(size - 1)
        stream = client.generate(NAME, PROMPT, max_tokens=TOKENS, temperature=0.0)
        tokens: list[int] = []
        answer = asyncio.create_task(read(stream, tokens))
        try:
            await assert_eventually(lambda: len(tokens) > 2, SECONDS)
            (instance,) = await client.instances()
            (lender,) = (part for part in cluster.nodes if part.name != instance.node_id)
            workers = [one for one in lender.descendants() if one not in before[lender.name]]
            yield Begun(client, tokens, answer, lender, workers)
        finally:
            gate.open()
            await asyncio.gather(answer, return_exceptions=True)


async def read(stream: sllm.AsyncStream, tokens: list[int]) -> sllm.Result:
    async for event in stream:
        if isinstance(event, sllm.Tokens):
            tokens += event.token_ids
    return await stream.result()


def is_cold(cluster: Cluster) -> bool:
    """Whether nothing runs, and nothing is in memory."""
    nodes = cluster.client.nodes()
    for node in nodes:
        try:
            evict(node)
        except grpc.RpcError:  # a prefetch holds it for a moment
            return False
    nodes = cluster.client.nodes()
    in_memory = [one for node in nodes for one in node.copies if one.tier == "DRAM"]
    return not (in_memory or cluster.client.instances())


async def undisturbed(begun: Begun) -> sllm.Result:
    """The same request, with all weights in memory."""
    return await begun.client.complete(NAME, PROMPT, max_tokens=TOKENS, temperature=0.0)


def has_ended(worker: psutil.Process) -> bool:
    return not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE


async def test_tokens_come_before_any_node_has_all_weights(two_nodes: Cluster, gate: Gate) -> None:
    async with begun(two_nodes, gate) as lent:
        assert lent.workers
        gate.open()
        result = await asyncio.wait_for(lent.answer, SECONDS)
        same = await undisturbed(lent)
        assert (result.token_ids, result.text) == (same.token_ids, same.text)
        assert not result.migrations
        await assert_eventually(lambda: all(map(has_ended, lent.workers)), SECONDS)


async def test_a_lender_that_is_killed_costs_the_caller_nothing(
    two_nodes: Cluster, gate: Gate
) -> None:
    async with begun(two_nodes, gate) as lent:
        for worker in lent.workers:
            os.kill(worker.pid, signal.SIGKILL)
        gate.open()
        result = await asyncio.wait_for(lent.answer, SECONDS)
        same = await undisturbed(lent)
        assert (result.token_ids, result.text) == (same.token_ids, same.text)
        assert not result.migrations
