"""Every command line of `sllm` in the documentation is one that the program takes."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from sllm.cli.app import app

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "deploy").rglob("*.md"),
        *(ROOT / "deploy").rglob("NOTES.txt"),
        *(ROOT / "examples").rglob("*.md"),
        *(ROOT / "clients").glob("*/README.md"),
    ]
)
NONE_SUCH = {" logs"}
"""What the documentation says there is not."""
COMMANDS: Any = get_command(app)
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
_SHELL = {"", "sh", "bash", "console"}
_INLINE = re.compile(r"`(sllm [^`]+)`")
_WORD = re.compile(r"(?:^|[\s(])sllm(?= [a-z-])")


def command_lines(text: str) -> Iterator[str]:
    """As they would be typed."""
    for language, block in _BLOCK.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            if language in _SHELL and (found := _WORD.search(line)):
                yield line[found.end() :]
    for inline in _INLINE.findall(_BLOCK.sub("", text)):
        yield inline.removeprefix("sllm")


def words(line: str) -> list[str]:
    """Up to what is the shell's or is told of the line."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>()")
    lexer.whitespace_split = True
    found = []
    for word in lexer:
        if set(word) & set("|&;<>()"):
            break
        found.append(word)
    return found


def problem(line: str) -> str | None:
    command, given = COMMANDS, words(line)
    while hasattr(command, "commands") and given and not given[0].startswith("-"):
        found = command.commands.get(given.pop(0))
        if found is None:
            return "no such command"
        command = found
    known = {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
    for word in given:
        name = word.partition("=")[0]
        if name == "--":
            break
        if name.startswith("-") and len(name) > 1 and name not in known | {"-h", "--help"}:
            return f"no option {name}"
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_command_lines_are_the_programs(page: Path) -> None:
    wrong = {line: said for line in command_lines(page.read_text()) if (said := problem(line))}
    assert wrong.keys() <= NONE_SUCH, wrong
