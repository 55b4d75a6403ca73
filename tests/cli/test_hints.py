"""Every failure says what to type next, and what it names is there."""

import json
import re

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from sllm import errors
from sllm.cli.app import app
from sllm.cli.hints import HINTS, hint
from tests.cli.conftest import Run
from tests.client.fake_control import FakeControl

NAMED = re.compile(r"`sllm ([^`]+)`")


def test_every_reason_has_one_and_no_other_does() -> None:
    assert set(HINTS) == set(errors.BY_REASON)


@pytest.mark.parametrize("reason", sorted(HINTS))
def test_it_names_commands_and_options_that_are_there(reason: str) -> None:
    named = NAMED.findall(hint(reason, "generate"))
    assert named
    for words in named:
        command = get_command(app)
        for word in words.split():
            if word.startswith("--"):
                options = {name for one in command.params for name in one.opts}
                assert word in {"--help", *options}, words
            elif word.islower() and isinstance(command, TyperGroup):
                command = command.commands[word]


@pytest.mark.parametrize("reason", ["DEPLOYMENT_NOT_FOUND", "NO_CAPACITY", "INTERNAL"])
def test_a_command_that_fails_tells_it(run: Run, control: FakeControl, reason: str) -> None:
    for _ in range(2):
        control.reply("DeleteDeployment", errors.BY_REASON[reason]("it went wrong"))
    told = hint(reason, "rm")
    assert run("rm", "x").err == f"error: {reason}: it went wrong (next: {told})\n"
    assert json.loads(run("rm", "x", "--json").err)["error"]["hint"] == told


def test_a_message_that_names_a_command_is_enough(run: Run, control: FakeControl) -> None:
    control.reply("DeleteDeployment", errors.DeploymentNotFound("see `sllm ls`"))
    assert run("rm", "x").err == "error: DEPLOYMENT_NOT_FOUND: see `sllm ls`\n"
