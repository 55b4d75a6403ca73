"""The process of a command: its standard streams, whatever has become of them, and its signals."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from serverlessllm.v1 import cluster_service_pb2 as cluster_pb
from serverlessllm.v1 import deployment_service_pb2 as pb

import sllm
from tests.client.fake_control import FakeControl, Silence
from tests.client.messages import deployment, generation
from tests.processes import started
from tests.support import held_port, wait_until

TIMEOUT = 60.0
SLLM = (sys.executable, "-m", "sllm.cli.main")
FULL = "input or output failed: No space left on device"
MANY = [deployment(f"deployment-{number}") for number in range(500)]
"""Whose listing is more than a pipe holds, or a buffer."""
COMMANDS = (
    ("ls",),
    ("ls", "--json"),
    ("generate", "tiny", "Once"),
    ("top", "--interval=10ms"),
    ("--help",),
    ("ls", "-h"),
    ("--version",),
)


@pytest.fixture
def answers(control: FakeControl) -> FakeControl:
    control.reply("ListDeployments", pb.ListDeploymentsResponse(deployments=MANY))
    control.reply("Generate", *generation())
    control.reply("WatchCluster", cluster_pb.WatchClusterResponse(revision=1), Silence())
    return control


def _run(control: FakeControl, command: tuple[str, ...], redirection: str) -> tuple[int, str]:
    """The status of a command with streams as the shell has them, and what it wrote to stderr."""
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirection}', "sh", *SLLM, *command],
        env={**os.environ, "SLLM_CONTROL": control.address},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_full_disk_is_told(answers: FakeControl, command: tuple[str, ...]) -> None:
    status, err = _run(answers, command, ">/dev/full")

    assert status == 1
    if "--json" in command:
        assert json.loads(err)["error"]["message"] == FULL
    else:
        assert err == f"error: IO_ERROR: {FULL}\n"


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_reader_that_leaves_ends_it_quietly(
    answers: FakeControl, command: tuple[str, ...]
) -> None:
    environment = {**os.environ, "SLLM_CONTROL": answers.address}
    with started((*SLLM, *command), env=environment, stderr=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.close()
        _, err = process.communicate(timeout=TIMEOUT)
    # What is printed before a command begins, its help above all, ends in typer's own way.
    assert process.returncode == (1 if command[-1].startswith(("-h", "--h", "--v")) else 141)
    assert err == ""


@pytest.mark.parametrize("command", [one for one in COMMANDS if one[0] != "top"], ids=" ".join)
@pytest.mark.parametrize("streams", [">&-", "<&- >&-"])
def test_output_that_nobody_wants_is_dropped(
    answers: FakeControl, command: tuple[str, ...], streams: str
) -> None:
    assert _run(answers, command, streams) == (0, "")


@pytest.mark.parametrize("streams", ["2>&-", "2>/dev/full"])
def test_an_error_that_cannot_be_told_is_in_the_status(control: FakeControl, streams: str) -> None:
    assert _run(control, ("ls", "--control", "localhost:1"), streams) == (1, "")


def test_top_in_a_pipe_prints_one_frame_after_another(answers: FakeControl) -> None:
    environment = {**os.environ, "SLLM_CONTROL": answers.address}
    with started((*SLLM, "top", "--interval=10ms"), env=environment) as process:
        assert process.stdout
        headings = [line for line in _first(process, 40) if line.startswith("0 nodes, ")]
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT) == 0
    assert len(headings) > 1


def _first(process: subprocess.Popen[str], count: int) -> list[str]:
    assert process.stdout
    return [process.stdout.readline() for _ in range(count)]


INTERRUPTED = """
import os, signal, sys
class Interrupt:
    def find_spec(self, name, *_):
        if name == sys.argv[0]:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
sys.argv = sys.argv[1:]
from sllm.cli.main import main
main()
"""


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("sllm.cli.app", ["--help"]),
        ("rich.table", ["ls"]),
        ("sllm.client.sync", ["ls"]),
        ("grpc", ["ls"]),
        ("grpc._cython", ["top"]),
        ("sllm.control.server", ["control"]),
        ("sllm.node.server", ["node"]),
    ],
)
def test_ctrl_c_while_it_is_still_importing(
    tmp_path: Path, module: str, command: list[str]
) -> None:
    where = [f"--dir={tmp_path}"] if command[0] in ("control", "node") else []
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, module, *command, *where],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_a_cluster_goes_on_when_nobody_can_be_told(tmp_path: Path) -> None:
    sizes = ("--dram=64MiB", "--ssd=64MiB", "--kv=16MiB", "--engines=transformers")
    with (
        held_port() as port,
        Path("/dev/full").open("w") as full,
        started(
            (*SLLM, "up", f"--port={port}", f"--dir={tmp_path}", *sizes), stdout=full
        ) as process,
        sllm.Client(f"127.0.0.1:{port}") as client,
    ):
        wait_until(lambda: _joined(client) > 0, TIMEOUT)
        before = _joined(client)
        _server(process, "node-1").kill()  # which it tells of
        wait_until(lambda: _joined(client) > before, TIMEOUT)
        assert process.poll() is None
        process.terminate()
        assert process.wait(TIMEOUT) == 0


def _server(up: subprocess.Popen[str], name: str) -> psutil.Process:
    return next(one for one in psutil.Process(up.pid).children() if name in one.cmdline())


def _joined(client: sllm.Client) -> float:
    """When the one node joined; 0 if it has not, as far as anybody can tell."""
    try:
        return sum(node.connected_at for node in client.nodes())
    except sllm.errors.Unreachable:
        return 0.0
