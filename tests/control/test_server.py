"""The control plane as a process: it says where it listens, and ends when it is asked to."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from serverlessllm.v1 import deployment_service_pb2 as pb
from serverlessllm.v1 import node_service_pb2 as node_pb
from serverlessllm.v1.deployment_service_pb2_grpc import DeploymentServiceStub
from structlog.testing import capture_logs

from sllm import errors, rpc
from sllm.control.config import ControlConfig
from sllm.control.server import running
from tests.control.clusters import Cluster
from tests.control.fake_node import FakeNode
from tests.control.orchestration.test_adoption import remove_state
from tests.processes import started
from tests.support import assert_eventually

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


async def test_a_second_control_plane_on_its_directory_is_refused(
    cluster: Cluster, tmp_path: Path
) -> None:
    with pytest.raises(errors.StartFailed, match="another control plane uses"):
        async with running(ControlConfig(directory=tmp_path, listen_address="127.0.0.1:0")):
            pass


async def test_what_runs_is_left_alone_when_it_goes_down(cluster: Cluster) -> None:
    """Callers read on after its restart: a stream that it ends says nothing of the instance."""
    node = await cluster.add_node("n1")
    await cluster.caller.deploy("tiny")
    node.script.tokens_before_gate = 2
    node.script.amid_tokens.shut()
    stream = await cluster.caller.generate("tiny", max_tokens=5).until("tokens")
    ending = asyncio.create_task(stream.end())
    with capture_logs() as logs:
        await cluster.restart_control()
    node.script.amid_tokens.open()
    with pytest.raises(errors.ShuttingDown):
        await ending
    assert len(await cluster.caller.instances()) == 1
    assert not [one for one in node.calls if isinstance(one, node_pb.StopInstanceRequest)]
    assert "control.stop_failed" not in [one["event"] for one in logs], "it was to be stopped"


async def test_the_loss_of_what_was_stored_is_told(
    cluster: Cluster, node: FakeNode, tmp_path: Path
) -> None:
    await cluster.caller.deploy()
    remove_state(tmp_path)
    with pytest.raises(errors.StateUnavailable):
        await cluster.caller.deploy("another")
    with pytest.raises(errors.StateUnavailable):
        await cluster.caller.delete("tiny")
    async with rpc.channel(cluster.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        service = health_pb2.HealthCheckRequest(service="serverlessllm.v1.DeploymentService")

        async def not_serving() -> bool:
            answer = await health.Check(service)
            return bool(answer.status == health_pb2.HealthCheckResponse.NOT_SERVING)

        await assert_eventually(not_serving)
    await cluster.caller.complete()


@pytest.mark.parametrize(
    ("host", "auth", "told"),
    [("0.0.0.0", None, True), ("0.0.0.0", True, False), ("127.0.0.1", None, False)],
)
async def test_that_anybody_may_do_everything_is_told_where_others_reach_it(
    tmp_path: Path, host: str, auth: bool | None, told: bool
) -> None:
    config = ControlConfig(directory=tmp_path, listen_address=f"{host}:0", insecure=True, auth=auth)
    with capture_logs() as logs:
        async with running(config):
            pass
    assert any(one["event"] == "control.asks_nobody" for one in logs) == told
