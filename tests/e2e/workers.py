"""Looking into workers: straight over their sockets."""

from pathlib import Path

import grpc
from serverlessllm.v1 import worker_service_pb2 as pb
from serverlessllm.v1.worker_service_pb2_grpc import WorkerServiceStub

from tests.e2e.cluster import Cluster


def sockets(cluster: Cluster) -> list[Path]:
    """The sockets of all workers that have weights: others make texts, or have only begun."""
    found = sorted(cluster.directory.glob("node-*/run/*.sock"))
    return [one for one in found if status(one).mapping_bytes]


def status(socket: Path) -> pb.GetStatusResponse:
    """What a worker says of itself."""
    with grpc.insecure_channel(f"unix:{socket}") as channel:
        return WorkerServiceStub(channel).GetStatus(pb.GetStatusRequest(), timeout=10)
