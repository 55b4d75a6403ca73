"""The command line as a process: how it starts, and what it does without."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.client.fake_control import FakeControl, Silence
from tests.client.messages import generation
from tests.processes import started
from tests.support import wait_until

TIMEOUT = 60

LIGHT = """
import sys
from typer.testing import CliRunner
from sllm.cli.app import app
CliRunner().invoke(app, {arguments})
sys.exit(", ".join({heavy} & set(sys.modules)))
"""


@pytest.mark.parametrize(
    ("arguments", "heavy"),
    [
        (["--help"], {"torch", "transformers", "grpc", "uvloop", "opentelemetry.sdk"}),
        (["ls", "--control", "localhost:1"], {"torch", "transformers", "sllm.node", "uvloop"}),
    ],
)
def test_a_command_imports_no_more_than_it_needs(arguments: list[str], heavy: set[str]) -> None:
    script = LIGHT.format(arguments=arguments, heavy=heavy)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert done.stderr.strip() == ""


def test_an_unreachable_control_plane() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sllm.cli.main", "ls", "--control", "localhost:1"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: UNREACHABLE: no connection to the control plane at ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("server", ["control", "node"])
def test_a_server_that_cannot_have_its_files_says_so(server: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sllm.cli.main", server, "--listen=127.0.0.1:0", "--dir=/proc/it"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: START_FAILED: the server cannot run: ")
    assert "/proc/it" in last
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("control", "--listen=127.0.0.1"), "cannot listen on '127.0.0.1': write host:port"),
        (("node", "--dram=900TiB"), "900.0 TiB for weights (--dram), "),
        (("node", "--memory=1GiB", "--dram=1GiB"), "fit the 1.0 GiB of memory"),
        (("node", "--memory=1GiB", "--kv=1GiB"), "1.0 GiB for KV caches (--kv), "),
        (("up", "--port=0", "--nodes=2", "--dram=600TiB"), "600.0 TiB for weights (--dram), "),
        (("node", "--listen=0.0.0.0:0"), "--advertise"),
    ],
)
def test_what_a_server_cannot_be_is_refused(
    tmp_path: Path, arguments: tuple[str, ...], complaint: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sllm.cli.main", *arguments, f"--dir={tmp_path}"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "error: INVALID_ARGUMENT: " in done.stderr.splitlines()[-1]
    assert complaint in done.stderr


def test_a_metrics_port_in_use_is_told(tmp_path: Path) -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = f"--metrics-port={taken.getsockname()[1]}"
        done = subprocess.run(
            [sys.executable, "-m", "sllm.cli.main", "control", port, f"--dir={tmp_path}"],
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: START_FAILED: ")
    assert "Traceback" not in done.stderr


def test_ctrl_c_ends_the_generation(control: FakeControl) -> None:
    control.reply("Generate", *generation()[:4], Silence())
    with started(
        [sys.executable, "-m", "sllm.cli.main", "generate", "tiny", "Once"],
        stderr=subprocess.PIPE,
        env={**os.environ, "SLLM_CONTROL": control.address},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read(5) == "Once "
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 128 + signal.SIGINT
    assert "Traceback" not in err
    wait_until(lambda: control.abandoned == ["Generate"])
