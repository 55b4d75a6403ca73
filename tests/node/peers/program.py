"""The tier store of a node as a process of its own, with the service for other nodes.

It is told what to do by lines of JSON on its standard input, and answers in lines on its standard
output: what a node agent does on the control plane's word, without engines, which take seconds to
come up.
"""

import argparse
import asyncio
import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog
from serverlessllm.v1 import peer_service_pb2
from serverlessllm.v1.peer_service_pb2_grpc import add_PeerServiceServicer_to_server

from sllm import rpc
from sllm.checkpoint.remote.options import RemoteOptions
from sllm.clock import MonotonicClock
from sllm.errors import CheckpointNotFound, SllmError
from sllm.node.api.peer_service import PeerServicer
from sllm.node.peers.types import Network, Peer, Peers
from sllm.node.store.tier_store import TierStore
from sllm.node.tiers.pool import Pool
from sllm.node.tiers.types import Tier


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("node_id")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--chunk-bytes", type=int, default=8192)
    parser.add_argument("--pool-chunks", type=int, default=64)
    parser.add_argument("--ssd-bytes", type=int, default=1 << 30)
    return parser.parse_args()


async def main(options: argparse.Namespace) -> None:
    """Serves until its standard input ends."""
    network = Network(options.node_id, rpc.thread_channel)
    pool = Pool(options.pool_chunks * options.chunk_bytes, options.chunk_bytes)
    store = await TierStore.open(
        options.directory,
        options.ssd_bytes,
        pool,
        clock=MonotonicClock(),
        remote=RemoteOptions(),
        network=network,
    )
    server = rpc.Server()
    add_PeerServiceServicer_to_server(PeerServicer(store.sharing, store.giving_pages), server.grpc)
    service = peer_service_pb2.DESCRIPTOR.services_by_name["PeerService"]
    port = await server.start(f"{options.host}:0", [service], insecure=True)
    network.address = f"{options.host}:{port}"
    _say({"address": network.address})
    try:
        await _obey(store)
    finally:
        await server.stop(0.1)
        await store.close()
        store.check_integrity()
        pool.close()
    _say({"closed": True})


async def _obey(store: TierStore) -> None:
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        try:
            order = json.loads(line)
            answer = _evict if "evict" in order else _promote
            _say(await answer(store, order))
        except SllmError as error:
            _say({"error": error.reason, "message": error.message})


async def _promote(store: TierStore, order: dict[str, Any]) -> dict[str, Any]:
    clock = MonotonicClock()
    named = tuple(Peer(*one) for one in order.get("peers", ()))
    began = clock.now()
    lease = await store.promote(
        order["source"],
        order.get("dtype"),
        Tier[order.get("tier", "SSD")],
        pack=True,
        peers=Peers(named, order.get("digest", "")) if named else None,
    )
    answer = {
        "digest": lease.digest,
        "directory": str(lease.directory),
        "seconds": clock.now() - began,
        "bytes": {step.phase.name: step.size_bytes for step in lease.steps},
    }
    lease.release()
    return answer


async def _evict(store: TierStore, order: dict[str, Any]) -> dict[str, Any]:
    for tier in (Tier.DRAM, Tier.SSD):
        with suppress(CheckpointNotFound):
            await store.evict(order["evict"], tier)
    return {"evicted": order["evict"]}


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    asyncio.run(main(_arguments()))
