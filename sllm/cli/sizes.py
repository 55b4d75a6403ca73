"""Options that are sizes in bytes."""

from typing import Any

import typer

from sllm import config, errors

MIB = 1024**2
GIB = 1024**3


def size_option(explanation: str, default: str) -> Any:
    """An option of type int that is written as a size; `default` is how help shows its default."""
    return typer.Option(parser=parse_size, metavar="SIZE", help=explanation, show_default=default)


def parse_size(text: str | int) -> int:
    """Bytes of a size on the command line; a default is a number already.

    Raises:
        typer.BadParameter: It is no size.
    """
    if isinstance(text, int):
        return text
    try:
        return config.parse_bytes(text)
    except errors.InvalidArgument as error:
        raise typer.BadParameter(error.message) from error
