"""The examples in the docstrings of the classes that one starts with: they run as they stand."""

import asyncio
import inspect
from textwrap import dedent, indent

import pytest
from serverlessllm.v1 import deployment_service_pb2 as pb

import sllm
from sllm import config
from tests.client.fake_control import FakeControl
from tests.client.messages import deployment, generation


def _example(cls: type) -> str:
    """The code under "Example:"."""
    return dedent(inspect.getdoc(cls).partition("Example:\n")[2])  # type: ignore[union-attr]


@pytest.fixture(autouse=True)
def cluster(control: FakeControl, monkeypatch: pytest.MonkeyPatch) -> FakeControl:
    """A control plane where clients look for one, with a model to generate from."""
    monkeypatch.setenv(config.CONTROL_VARIABLE, control.address)
    control.reply("Deploy", pb.DeployResponse(deployment=deployment()))
    for _ in range(2):
        control.reply("Generate", *generation())
    return control


def test_the_client(capsys: pytest.CaptureFixture[str]) -> None:
    exec(_example(sllm.Client), {"sllm": sllm})

    assert capsys.readouterr().out == "Once upon 3\n"


def test_its_stream(capsys: pytest.CaptureFixture[str]) -> None:
    with sllm.Client() as client:
        exec(_example(sllm.Stream), {"sllm": sllm, "client": client})

    assert capsys.readouterr().out == "Once uponSTOP\n"


async def _run(example: str, **names: object) -> None:
    found: dict[str, object] = {"sllm": sllm, "asyncio": asyncio, **names}
    exec("async def example():\n" + indent(example, "    "), found)
    await found["example"]()  # type: ignore[operator]  # just defined


async def test_the_asynchronous_client(capsys: pytest.CaptureFixture[str]) -> None:
    await _run(_example(sllm.AsyncClient))

    assert capsys.readouterr().out == "Once upon 3\n" * 2


async def test_its_asynchronous_stream(capsys: pytest.CaptureFixture[str]) -> None:
    async with sllm.AsyncClient() as client:
        await _run(_example(sllm.AsyncStream), client=client)

    assert capsys.readouterr().out == "Once uponSTOP\n"
