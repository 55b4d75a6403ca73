"""The table of what a generation can be asked for has every field, and says who takes it."""

import inspect
import re
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor
from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1 import types_pb2 as pb
from typer.main import get_command

import sllm
from sllm.cli.app import app

TABLE = (Path(__file__).parent.parent / "docs" / "requests.md").read_text()
ROW = re.compile(r"^\| `([\w.]+)` \| (.*) \| (.*) \| (.*) \| (.*)\|$", re.MULTILINE)
ROWS = {field: [cell.strip() for cell in cells] for field, *cells in ROW.findall(TABLE)}
INNER: dict[str, Descriptor] = {
    "sampling": pb.SamplingParams.DESCRIPTOR,
    "messages": pb.ChatMessages.DESCRIPTOR,
    "structured_output": pb.StructuredOutput.DESCRIPTOR,
}
NOT_ASKED = {
    "adapter",
    "background",
    "deployment",
    "instance_id",
    "messages.chat_template",
    "prefixes",
}
"""Who serves it, and what the router says of it: no part of what is served."""


def fields() -> set[str]:
    found = {one.name for one in inference_pb.GenerateRequest.DESCRIPTOR.fields}
    found -= {"sampling", "structured_output"}
    inner = {f"{name}.{one.name}" for name, of in INNER.items() for one in of.fields}
    return (found | inner) - NOT_ASKED


def test_every_field_is_in_the_table_and_no_other() -> None:
    assert set(ROWS) == fields()


ON_TRANSFORMERS = {"parsing": "forced calls", "images": "no"}
"""What that engine does of fields that it does not take as vLLM does: parsers are vLLM's, and
models that see run there."""


@pytest.mark.parametrize("field", ROWS)
def test_what_it_says_of_a_field_is_there(field: str) -> None:
    vllm, transformers, python, command = ROWS[field]
    assert (vllm, transformers) == ("yes", ON_TRANSFORMERS.get(field, "yes"))
    parameters = inspect.signature(sllm.AsyncClient.generate).parameters
    assert python == "by itself" or python.strip("`") in parameters
    options = {
        option
        for parameter in get_command(app).commands["generate"].params  # type: ignore[attr-defined]  # a group
        for option in (*parameter.opts, (parameter.name or "").upper())
    }
    assert command in ("", "`sllm chat`") or command.strip("`") in options


def test_every_parameter_of_the_client_is_in_the_table() -> None:
    parameters = set(inspect.signature(sllm.AsyncClient.generate).parameters)
    told = {cells[2].strip("`") for cells in ROWS.values()}
    assert parameters - told == {"self", "deployment", "reattach", "timeout"}
