"""`sllm` alone, and what shells complete."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from serverlessllm.v1 import deployment_service_pb2 as pb

from tests.cli.conftest import Run
from tests.client.fake_control import FakeControl
from tests.client.messages import deployment

TIMEOUT = 60


def test_alone_it_says_what_to_do_with_the_cluster(run: Run, control: FakeControl) -> None:
    outcome = run()
    assert outcome.code == 0
    assert outcome.out.startswith(f"A cluster is reachable at {control.address}.\n")
    assert "sllm run SOURCE" in outcome.out


@pytest.mark.parametrize("address", ["localhost:1", "nobody.invalid:1", "[::1]:1", "unix:/no", "x"])
def test_alone_it_says_how_to_start_one(
    run: Run, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    environment = {**os.environ, "SLLM_CONTROL": address}
    command = [sys.executable, "-m", "sllm.cli.main"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT, check=False, env=environment
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"No cluster is reachable at {address}.\n\n  sllm up ")


def _completed(words: str, control: str, home: Path) -> list[str]:
    """What bash is given for the last of these words."""
    environment = {
        **os.environ,
        "HOME": str(home),
        "SLLM_CONTROL": control,
        "_SLLM_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    script = "import sys; sys.argv[0] = 'sllm'; from sllm.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
        env=environment,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def test_shells_complete_commands_options_and_names(control: FakeControl, tmp_path: Path) -> None:
    names = [deployment("tiny"), deployment("tall"), deployment("other")]
    control.reply("ListDeployments", pb.ListDeploymentsResponse(deployments=names))
    assert _completed("sllm gene", control.address, tmp_path) == ["generate"]
    assert _completed("sllm generate --max", control.address, tmp_path) == ["--max-tokens"]
    assert _completed("sllm generate t", control.address, tmp_path) == ["tiny", "tall"]


def test_without_a_cluster_no_names_are_completed(tmp_path: Path) -> None:
    assert _completed("sllm generate t", "localhost:1", tmp_path) == []
