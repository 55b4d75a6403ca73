"""`sllm logs`: what the servers of `sllm up` write, in one order."""

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.text import Text

from sllm import config, errors
from sllm.cli.common import output

_LOOK_SECONDS: Final = 0.2
_LEVELS: Final = ("debug", "info", "warning", "error", "critical")
_STYLES: Final = {"warning": "yellow", "error": "red", "critical": "bold red"}
_APART: Final = frozenset({"timestamp", "level", "event", "service", "process"})
"""Fields that a line shows in places of their own, or that the name of its file says."""

Fields = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a server's log."""

    server: str
    """Name of the server: control, gateway, node-1."""
    text: str
    """As it was written."""
    fields: Fields | None
    """What it says. None: it is plain text, as libraries write it."""

    @property
    def at(self) -> str:
        """When it was written, in ISO 8601. Empty: it does not say."""
        return str((self.fields or {}).get("timestamp", ""))

    @property
    def level(self) -> str:
        """How much it matters; that of plain text is as an information's."""
        return str((self.fields or {}).get("level", "info"))

    def shown(self) -> Text:
        """For a reader: clock, server, what has happened, and what belongs to it."""
        if self.fields is None:
            return Text(f"{'':12}  {self.server:<8}  {self.text}", style="dim")
        more = (f"{key}={value}" for key, value in self.fields.items() if key not in _APART)
        event = Text(str(self.fields.get("event", "")), style=_STYLES.get(self.level, "bold"))
        head = f"{self.at[11:23]:12}  {self.server:<8}  "
        return Text.assemble(head, event, "  ", "  ".join(more))


def parse(server: str, text: str) -> Line:
    """A line of a server's log."""
    fields = None
    with suppress(ValueError, RecursionError):
        fields = json.loads(text)
    return Line(server, text, fields if isinstance(fields, dict) else None)


class LogFile:
    """The log of one server, read on where it was left."""

    def __init__(self, path: Path) -> None:
        self._server = path.stem
        self._path = path
        self._read = 0
        """Bytes that were read."""

    def lines(self) -> list[Line]:
        """Those that have come and are whole; a file that is gone, or was cut, begins anew."""
        try:
            with self._path.open("rb") as log:
                if log.seek(0, 2) < self._read:
                    self._read = 0
                log.seek(self._read)
                written, end, _ = log.read().rpartition(b"\n")
        except FileNotFoundError:
            self._read = 0
            return []
        self._read += len(written) + len(end)
        texts = written.decode(errors="replace").split("\n") if end else []
        return [parse(self._server, text) for text in texts if text]


class Logs:
    """The logs of all servers in a directory, or of some."""

    def __init__(self, directory: Path, servers: Sequence[str]) -> None:
        self._directory = directory
        self._servers = servers
        self._files: dict[Path, LogFile] = {}

    def new(self) -> list[Line]:
        """Lines that have come, in the order in which they were written."""
        for path in sorted(self._directory.glob("*.log")):
            if not self._servers or path.stem in self._servers:
                self._files.setdefault(path, LogFile(path))
        placed = [one for file in self._files.values() for one in _placed(file.lines())]
        return [line for _, line in sorted(placed, key=itemgetter(0))]


def _placed(lines: Iterable[Line]) -> Iterator[tuple[str, Line]]:
    """Lines of one server with their moments; plain text stands behind what was before it."""
    at = ""
    for line in lines:
        at = line.at or at
        yield at, line


def logs(
    servers: Annotated[
        list[str] | None,
        typer.Argument(help="control, gateway, node-1, …", show_default="all"),
    ] = None,
    directory: Annotated[
        Path | None,
        typer.Option("--dir", help="That of `sllm up`.", show_default="~/.sllm"),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C.")
    ] = False,
    tail: Annotated[int, typer.Option("--tail", "-n", min=0, help="Lines from before.")] = 50,
    level: Annotated[str, typer.Option(help=f"At least: {', '.join(_LEVELS)}.")] = "info",
    as_json: Annotated[bool, typer.Option("--json", help="Print lines as they are.")] = False,
) -> None:
    """Show what the servers of `sllm up` on this machine write, in the order of its coming."""
    wanted = _levels_from(level)
    where = (directory or config.data_directory()) / "logs"
    found = Logs(where, servers or ())
    before = [line for line in found.new() if line.level in wanted]
    if not before and not follow:
        raise errors.InvalidArgument(
            f"there are no such lines in {where}: `sllm up --dir DIR` keeps its logs in DIR/logs"
        )
    _print(before[-tail:] if tail else [], as_json)
    with suppress(KeyboardInterrupt):
        while follow:
            time.sleep(_LOOK_SECONDS)
            _print([line for line in found.new() if line.level in wanted], as_json)


def _levels_from(level: str) -> Sequence[str]:
    if level not in _LEVELS:
        raise errors.InvalidArgument(f"level {level!r} is none of {', '.join(_LEVELS)}")
    return _LEVELS[_LEVELS.index(level) :]


def _print(lines: Iterable[Line], as_json: bool) -> None:
    console = output()
    for line in lines:
        if as_json:
            typer.echo(line.text)
        else:
            console.print(line.shown(), soft_wrap=True)
