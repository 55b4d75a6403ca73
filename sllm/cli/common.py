"""What the commands share: options, and output."""

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from sllm import config
from sllm.cli.interrupts import interrupts_end_it

if TYPE_CHECKING:
    from sllm import AsyncClient, Client

Control = Annotated[
    str,
    typer.Option(
        "--control", envvar=config.CONTROL_VARIABLE, help="host:port of the control plane."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

WIDE = 10_000
"""Columns of output that no terminal shows: a row is a line for what reads it, however long."""


def connect(control: str) -> "Client":
    """A client of the control plane at `control`."""
    with interrupts_end_it():
        from sllm.client.sync import Client  # brings gRPC along, which --help can do without

    return Client(control)


def connect_here(control: str) -> "AsyncClient":
    """The same for a command that has an event loop of its own."""
    with interrupts_end_it():
        from sllm.client.aio import AsyncClient

    return AsyncClient(control)


class _Output(Console):
    def on_broken_pipe(self) -> None:
        """Leaves the error to the command; rich would end the program in its own way."""
        raise  # it is called where the error is handled


def output() -> Console:
    """Standard output, which shows text as it is: names and paths may have brackets."""
    return _Output(width=None if sys.stdout.isatty() else WIDE, highlight=False, markup=False)


def diagnostics() -> Console:
    """Standard error, for all that is not the command's result."""
    return Console(stderr=True, highlight=False, markup=False)


def print_json(found: Any) -> None:
    """A record, a list of them, a mapping, or nothing, as JSON."""
    plain: Any = None
    if isinstance(found, Mapping):
        plain = dict(found)
    elif isinstance(found, Sequence):
        plain = [*map(dataclasses.asdict, found)]
    elif found is not None:
        plain = dataclasses.asdict(found)
    typer.echo(json.dumps(plain, indent=2))
