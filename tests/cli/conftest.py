"""The command line, run in this process against a control plane that says what it is told to."""

from collections.abc import Callable, Iterator

import pytest
from typer.testing import CliRunner

from sllm.cli.app import app
from tests.client.fake_control import FakeControl


class Outcome:
    """What a command left behind."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


Run = Callable[..., Outcome]
"""Runs `sllm` with these arguments: `run("rm", "tiny")`."""


@pytest.fixture
def control() -> Iterator[FakeControl]:
    fake = FakeControl()
    yield fake
    fake.stop()


@pytest.fixture
def run(control: FakeControl) -> Run:
    def invoke(*arguments: str, stdin: str | None = None) -> Outcome:
        environment = {"SLLM_CONTROL": control.address}
        result = CliRunner().invoke(app, arguments, input=stdin, env=environment)
        return Outcome(result.exit_code, result.stdout, result.stderr)

    return invoke
