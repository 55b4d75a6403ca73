"""Programs that tests start: they have signals of their own, and none outlives its test."""

import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any

import psutil


def let_children_be_interrupted() -> None:
    """Gives SIGINT back to the programs that this process starts, wherever it ignores it.

    A shell that puts a command into the background has it ignore SIGINT, as do some CI runners,
    and every child inherits that. This process goes on ignoring it, but in a handler: a program
    that is started has the default in place of a handler.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda *_: None)


@contextmanager
def started(
    command: Sequence[str], *, stdout: int | IO[str] = subprocess.PIPE, **options: Any
) -> Iterator[subprocess.Popen[str]]:
    """A program within the context; what still runs at the end, however that comes, is killed.

    Args:
        command: The program and its arguments.
        stdout: A pipe, if nothing else is said.
        options: More of Popen's.
    """
    with subprocess.Popen(command, text=True, stdout=stdout, **options) as process:
        try:
            yield process
        finally:
            process.kill()  # of no effect once it has ended


def descendants() -> set[int]:
    """This process's children and theirs: a test's own, and those that others keep beside it."""
    return {child.pid for child in psutil.Process().children(recursive=True)}
