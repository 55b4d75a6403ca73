"""`sllm run`: it leaves nothing behind, however it ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from serverlessllm.v1 import deployment_service_pb2 as pb

from sllm import errors
from sllm.cli.run import name_of
from tests.cli.conftest import Run
from tests.client.fake_control import FakeControl, Silence
from tests.client.messages import deployment, generation
from tests.processes import started
from tests.support import wait_until

TIMEOUT = 60


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("/models/tiny", "tiny"),
        ("models/Tiny Llama/", "tiny-llama"),
        ("hf://org/Qwen3-8B@main", "qwen3-8b"),
        ("s3://bucket/a/_x_", "x"),
        ("/", "model"),
        ("/models/" + "a" * 200, "a" * 48),
        ("/models/日本", "model"),
    ],
)
def test_the_name_is_made_of_the_source(source: str, name: str) -> None:
    assert name_of(source) == name


@pytest.fixture
def deploys(control: FakeControl) -> FakeControl:
    control.reply("Deploy", pb.DeployResponse(deployment=deployment()))
    control.reply("WatchDeployment", pb.WatchDeploymentResponse(deployment=deployment()))
    control.reply("DeleteDeployment", pb.DeleteDeploymentResponse())
    return control


def _deleted(control: FakeControl) -> list[str]:
    return [one.name for one in control.requests["DeleteDeployment"]]


def test_it_deploys_generates_and_removes(run: Run, deploys: FakeControl) -> None:
    deploys.reply("Generate", *generation())
    outcome = run("run", "/models/tiny", "Once", "--receipt")
    (asked,) = deploys.requests["Generate"]
    assert (outcome.code, asked.text) == (0, "Once")
    assert asked.deployment.startswith("tiny-")
    assert _deleted(deploys) == [asked.deployment]
    assert "to the first token" in outcome.err


def test_a_message_of_a_conversation(run: Run, deploys: FakeControl) -> None:
    deploys.reply("Generate", *generation())
    run("run", "/models/tiny", "Hi", "--chat")
    (asked,) = deploys.requests["Generate"]
    assert [one.role for one in asked.messages.messages] == ["user"]


def test_what_is_kept_has_the_sources_name(run: Run, deploys: FakeControl) -> None:
    deploys.reply("Generate", *generation())
    outcome = run("run", "/models/tiny", "Once", "--keep")
    assert deploys.requests["Generate"][0].deployment == "tiny"
    assert _deleted(deploys) == []
    assert "tiny stays deployed" in outcome.err


def test_a_failure_removes_it_and_is_told(run: Run, deploys: FakeControl) -> None:
    deploys.reply("Generate", errors.NoCapacity("there is no room"))
    outcome = run("run", "/models/tiny", "Once")
    assert outcome.code == 1
    assert outcome.err.startswith("error: NO_CAPACITY: there is no room (next: ")
    assert len(_deleted(deploys)) == 1


def test_what_cannot_be_deployed_is_told_as_it_is(run: Run, control: FakeControl) -> None:
    control.reply("Deploy", errors.SourceNotFound("there is no /models/tiny"))
    control.reply("DeleteDeployment", errors.DeploymentNotFound("there is none"))
    outcome = run("run", "/models/tiny", "Once")
    assert outcome.err.startswith("error: SOURCE_NOT_FOUND: there is no /models/tiny (next: ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_removes_it(deploys: FakeControl, number: signal.Signals) -> None:
    deploys.reply("Generate", *generation()[:4], Silence())
    with started(
        [sys.executable, "-m", "sllm.cli.main", "run", str(Path("/models/tiny")), "Once"],
        stderr=subprocess.PIPE,
        env={**os.environ, "SLLM_CONTROL": deploys.address},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read(5) == "Once "
        process.send_signal(number)
        _, err = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, err.strip()) == (128 + number, "")
    assert len(_deleted(deploys)) == 1
    wait_until(lambda: deploys.abandoned == ["Generate"])
