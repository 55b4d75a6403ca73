"""What the commands share: options, output, and how errors are shown."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from sllm import config, errors

if TYPE_CHECKING:
    from sllm import Client

Control = Annotated[
    str,
    typer.Option(
        "--control", envvar=config.CONTROL_VARIABLE, help="host:port of the control plane."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

WIDE = 200
"""Columns of a table that no terminal shows: nothing is cut off for what reads it."""


class TypedErrors(TyperGroup):
    """Commands that end with one line on stderr, and status 1, when they fail."""

    def invoke(self, ctx: Any) -> Any:  # its class differs between versions of typer
        """Runs the command."""
        try:
            return super().invoke(ctx)
        except errors.SllmError as error:
            message = " ".join(error.message.split())
            typer.echo(f"error: {error.reason}: {message}", err=True)
            raise typer.Exit(1) from None


def connect(control: str) -> "Client":
    """A client of the control plane at `control`."""
    from sllm.client.sync import Client  # brings gRPC along, which --help can do without

    return Client(control)


def output() -> Console:
    """Standard output, which shows text as it is: names and paths may have brackets."""
    return Console(width=None if sys.stdout.isatty() else WIDE, highlight=False, markup=False)


def diagnostics() -> Console:
    """Standard error, for all that is not the command's result."""
    return Console(stderr=True, highlight=False, markup=False)


def print_json(found: Any) -> None:
    """A record, a list of them, or nothing, as JSON."""
    plain: Any = None
    if isinstance(found, Sequence):
        plain = [*map(dataclasses.asdict, found)]
    elif found is not None:
        plain = dataclasses.asdict(found)
    typer.echo(json.dumps(plain, indent=2))
