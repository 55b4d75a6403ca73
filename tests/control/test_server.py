"""The control plane as a process: it says where it listens, and ends when it is asked to."""

import signal
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from serverlessllm.v1 import deployment_service_pb2 as pb
from serverlessllm.v1.deployment_service_pb2_grpc import DeploymentServiceStub

from sllm import errors
from sllm.control.config import ControlConfig
from sllm.control.server import running
from tests.control.clusters import Cluster

SERVE = """
import sys
from pathlib import Path
import uvloop
from sllm.control.config import ControlConfig
from sllm.control.server import serve
uvloop.run(serve(ControlConfig(directory=Path(sys.argv[1]), listen_address=sys.argv[2])))
"""


def _spawn(directory: Path, listen: str = "127.0.0.1:0") -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-c", SERVE, str(directory), listen]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout
    line = process.stdout.readline()
    assert line.startswith("listening on 127.0.0.1:")
    return process, line.removeprefix("listening on ").strip()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_cleanly_when_it_is_asked_to(tmp_path: Path, number: signal.Signals) -> None:
    process, address = _spawn(tmp_path)
    with grpc.insecure_channel(address) as channel:
        stub = DeploymentServiceStub(channel)
        assert not stub.ListDeployments(pb.ListDeploymentsRequest()).deployments
        process.send_signal(number)
        assert process.wait(timeout=20) == 0
    assert process.stdout
    process.stdout.close()


def test_after_sigkill_it_starts_on_the_same_files(tmp_path: Path) -> None:
    process, address = _spawn(tmp_path)
    process.kill()
    process.wait()
    assert process.stdout
    process.stdout.close()
    again, same = _spawn(tmp_path, address)
    assert same == address
    again.terminate()
    assert again.wait(timeout=20) == 0
    assert again.stdout
    again.stdout.close()


async def test_an_address_in_use_is_told(cluster: Cluster, tmp_path: Path) -> None:
    config = ControlConfig(directory=tmp_path / "other", listen_address=cluster.address)
    with pytest.raises(errors.Unavailable):
        async with running(config):
            pass
