"""The control plane as a process: it says where it listens, and ends when it is asked to."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from serverlessllm.v1 import deployment_service_pb2 as pb
from serverlessllm.v1.deployment_service_pb2_grpc import DeploymentServiceStub

from sllm import errors
from sllm.control.config import ControlConfig
from sllm.control.server import running
from tests.control.clusters import Cluster
from tests.processes import started

SERVE = """
import sys
from pathlib import Path
import uvloop
from sllm.control.config import ControlConfig
from sllm.control.server import serve
uvloop.run(serve(ControlConfig(directory=Path(sys.argv[1]), listen_address=sys.argv[2])))
"""


@contextmanager
def _spawned(
    directory: Path, listen: str = "127.0.0.1:0"
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-c", SERVE, str(directory), listen]
    with started(command, stderr=subprocess.DEVNULL) as process:
        assert process.stdout
        line = process.stdout.readline()
        assert line.startswith("listening on 127.0.0.1:")
        yield process, line.removeprefix("listening on ").strip()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_cleanly_when_it_is_asked_to(tmp_path: Path, number: signal.Signals) -> None:
    with _spawned(tmp_path) as (process, address), grpc.insecure_channel(address) as channel:
        stub = DeploymentServiceStub(channel)
        assert not stub.ListDeployments(pb.ListDeploymentsRequest()).deployments
        process.send_signal(number)
        assert process.wait(timeout=20) == 0


def test_after_sigkill_it_starts_on_the_same_files(tmp_path: Path) -> None:
    with _spawned(tmp_path) as (process, address):
        process.kill()
    with _spawned(tmp_path, address) as (again, same):
        assert same == address
        again.terminate()
        assert again.wait(timeout=20) == 0


async def test_an_address_in_use_is_told(cluster: Cluster, tmp_path: Path) -> None:
    config = ControlConfig(directory=tmp_path / "other", listen_address=cluster.address)
    with pytest.raises(errors.Unavailable):
        async with running(config):
            pass
