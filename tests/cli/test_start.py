"""The command line as a process: how it starts, and what it does without."""

import os
import signal
import subprocess
import sys

import pytest

from tests.client.fake_control import FakeControl, Silence
from tests.client.messages import generation
from tests.support import wait_until

TIMEOUT = 60

LIGHT = """
import sys
from typer.testing import CliRunner
from sllm.cli.main import app
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


def test_ctrl_c_ends_the_generation(control: FakeControl) -> None:
    control.reply("Generate", *generation()[:4], Silence())
    with subprocess.Popen(
        [sys.executable, "-m", "sllm.cli.main", "generate", "tiny", "Once"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "SLLM_CONTROL": control.address},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read(5) == b"Once "
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT) != 0
        assert process.stderr is not None
        assert b"Traceback" not in process.stderr.read()
    wait_until(lambda: control.abandoned == ["Generate"])
