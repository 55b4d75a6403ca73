"""A cluster that serves a model from the device: first tokens, and tokens a second."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from serverlessllm.v1 import node_service_pb2 as node_pb
from serverlessllm.v1 import types_pb2 as pb
from serverlessllm.v1.node_service_pb2_grpc import NodeServiceStub

from bench.disk import drop_from_page_cache
from bench.local_cluster import GIB, LocalCluster, local_cluster
from sllm.client.types.enums import Tier
from sllm.client.types.receipts import Receipt

PROMPT = "Once upon a time"
STREAMS = 32
TOKENS = 128
_POOL_SLACK = 2 * GIB
_KV_BYTES = 24 * GIB
_WAIT_SECONDS = 60.0


@dataclass
class Served:
    """What was measured."""

    first_token: dict[str, list[float]] = field(default_factory=dict)
    """Seconds to the first token, by where the weights were: SSD, DRAM, DEVICE, warm."""
    receipts: dict[str, Receipt] = field(default_factory=dict)
    """The last of each."""
    tokens_per_second: dict[int, float] = field(default_factory=dict)
    """By the number of streams."""


@contextmanager
def serving(model: Path, directory: Path) -> Iterator[LocalCluster]:
    """A cluster of one node with room for the model on every tier."""
    size = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    directory.mkdir(parents=True, exist_ok=True)
    with local_cluster(directory, dram_bytes=size + _POOL_SLACK, kv_bytes=_KV_BYTES) as cluster:
        yield cluster


def measure(model: Path, directory: Path, rounds: int) -> Served:
    """First tokens from every tier, then decoding."""
    served = Served()
    with serving(model, directory) as cluster:
        _await_device(cluster)
        cluster.client.deploy("m", f"file://{model}", keep_alive=0.0, max_concurrency=STREAMS)
        _first_token(cluster)  # digests are computed at the first read
        for _ in range(rounds):
            for start in ("SSD", "DRAM", "DEVICE"):
                _make_cold(cluster, model, start)
                _note(served, start, _first_token(cluster))
        cluster.client.delete("m")
        cluster.client.deploy("m", f"file://{model}", keep_alive=600.0, max_concurrency=STREAMS)
        _first_token(cluster)
        for _ in range(rounds):
            _note(served, "warm", _first_token(cluster))
        for streams in (1, STREAMS):
            _decode(cluster, streams)
            served.tokens_per_second[streams] = _decode(cluster, streams)
    return served


def _await_device(cluster: LocalCluster) -> None:
    devices = cluster.client.nodes()[0].devices
    assert devices, "the node has found no device"


def _note(served: Served, start: str, receipt: Receipt) -> None:
    assert start == "warm" or (receipt.cold and receipt.from_tier == start), receipt
    served.first_token.setdefault(start, []).append(receipt.time_to_first_token)
    served.receipts[start] = receipt


def _first_token(cluster: LocalCluster) -> Receipt:
    result = cluster.client.complete("m", PROMPT, temperature=0, max_tokens=1)
    assert result.receipt is not None
    return result.receipt


def _make_cold(cluster: LocalCluster, model: Path, start: str) -> None:
    """Has the weights on `start` and no higher, and no instance."""
    deadline = time.monotonic() + _WAIT_SECONDS
    while cluster.client.instances():
        assert time.monotonic() < deadline, "an idle instance stays"
        time.sleep(0.05)
    if start == "DEVICE":
        return
    _evict(cluster, Tier.DEVICE)
    if start == "SSD":
        _evict(cluster, Tier.DRAM)
        drop_from_page_cache(model.glob("*.safetensors"))


def _evict(cluster: LocalCluster, tier: Tier) -> None:
    (node,) = cluster.client.nodes()
    number = pb.Tier.Value(f"TIER_{tier}")
    with grpc.insecure_channel(node.address) as channel:
        for copy in node.copies:
            if copy.tier is tier:
                request = node_pb.EvictRequest(digest=copy.digest, tier=number)
                NodeServiceStub(channel).Evict(request, timeout=30)


def _decode(cluster: LocalCluster, streams: int) -> float:
    """Tokens a second of so many streams together, prompts included."""
    began = time.perf_counter()
    with ThreadPoolExecutor(streams) as callers:
        counts = list(callers.map(lambda index: _generate(cluster, index), range(streams)))
    return sum(counts) / (time.perf_counter() - began)


def _generate(cluster: LocalCluster, index: int) -> int:
    result = cluster.client.complete(
        "m", f"{PROMPT}, number {index}", temperature=0, max_tokens=TOKENS, ignore_eos=True
    )
    return result.usage.completion_tokens
