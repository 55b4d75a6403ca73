"""How commands fail: in one line on stderr, which is JSON if the command was to print JSON.

The line ends with what to type next.
"""

import json
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import typer
from typer.core import TyperGroup

from sllm import errors
from sllm.cli.extras import NotInstalled
from sllm.cli.hints import hint
from sllm.cli.misuse import reworded

FAILED: Final = 1
MISUSED: Final = 2
READER_GONE: Final = 128 + signal.SIGPIPE
"""As a shell sees a program that its reader has left, such as `head`."""
_UsageError: type[Any] = typer.BadParameter.__base__  # type: ignore[assignment]  # has no public name


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a command has failed."""

    reason: str
    """The error's reason: programs branch on it."""
    message: str
    """What was wrong and what to do, in one line."""
    metadata: dict[str, str] = field(default_factory=dict)
    """Facts for programs."""
    retry_after: float | None = None
    """Seconds after which another try may help. None: nobody knows that it does."""
    hint: str = ""
    """What to type next. Empty: the message says it."""

    def tell(self, *, as_json: bool) -> None:
        """Writes it to stderr, as far as that takes it."""
        text = f"error: {self.reason}: {self.message}"
        if self.hint:
            text += f" (next: {self.hint})"
        with suppress(OSError):
            typer.echo(json.dumps({"error": asdict(self)}) if as_json else text, err=True)


class Commands(TyperGroup):
    """Commands that say on stderr why they fail, and end with a status above 0 then."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Runs the command line; what is printed outside commands, such as help, may fail too."""
        try:
            try:
                return super().main(*args, **options)
            finally:
                sys.stdout.flush()  # here, where a failure can still be told
        except BrokenPipeError:
            sys.exit(READER_GONE)
        except OSError as error:
            _of_system(error).tell(as_json=False)
            sys.exit(FAILED)

    def invoke(self, ctx: Any) -> Any:  # its class differs between versions of typer
        """Runs the command."""
        as_json = _wants_json(ctx)
        try:
            found = super().invoke(ctx)
            sys.stdout.flush()
            return found
        except errors.SllmError as error:
            failure, status = _of_cluster(error, ctx.invoked_subcommand or ""), FAILED
        except _UsageError as error:
            misuse = reworded(error)
            if not as_json:
                raise  # typer says how the command is used
            failure, status = Failure("USAGE", _line(misuse.format_message())), MISUSED
        except NotInstalled as error:
            failure, status = Failure("NOT_INSTALLED", str(error)), FAILED
        except BrokenPipeError as error:
            raise typer.Exit(READER_GONE) from error
        except OSError as error:
            failure, status = _of_system(error), FAILED
        except UnicodeEncodeError as error:  # of an argument: its bytes are no text
            message = f"{error.object!r} is not UTF-8: names and texts are"
            failure, status = Failure("INVALID_ARGUMENT", message), FAILED
        failure.tell(as_json=as_json)
        raise typer.Exit(status)


def _wants_json(ctx: Any) -> bool:
    arguments: Sequence[str] = [*getattr(ctx, "_protected_args", ()), *ctx.args]
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in options


def _of_cluster(error: errors.SllmError, command: str) -> Failure:
    message = _line(error.message)
    said = "`sllm " in message
    return Failure(
        reason=error.reason,
        message=message,
        metadata=error.metadata,
        retry_after=error.retry_after,
        hint="" if said else hint(error.reason, command),
    )


def _of_system(error: OSError) -> Failure:
    """Of a file that cannot be read, or of output that cannot be written."""
    place = f"{error.filename}: " if error.filename else "input or output failed: "
    return Failure("IO_ERROR", f"{place}{error.strerror or error}")


def _line(text: str) -> str:
    return " ".join(text.split())
