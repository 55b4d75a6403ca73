"""`sllm logs`."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.support import wait_until


def line(second: int, event: str, level: str = "info", **fields: object) -> str:
    moment = f"2026-11-30T03:40:{second:02}.000000Z"
    return json.dumps({"event": event, "level": level, "timestamp": moment, **fields}) + "\n"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "control.log").write_text(line(1, "first", node="n1") + line(4, "last", "warning"))
    (logs / "node-1.log").write_text(line(2, "second") + "plain words\n" + line(3, "third"))
    return tmp_path


def test_lines_of_all_servers_are_in_one_order(run: Run, directory: Path) -> None:
    shown = run("logs", "--dir", str(directory)).out.splitlines()
    assert [one.split()[-1] for one in shown] == ["node=n1", "second", "words", "third", "last"]
    assert shown[0].split() == ["03:40:01.000", "control", "first", "node=n1"]
    assert shown[2].split() == ["node-1", "plain", "words"]


def test_servers_levels_and_the_last_lines_can_be_chosen(run: Run, directory: Path) -> None:
    where = ("--dir", str(directory))
    assert "control" not in run("logs", "node-1", *where).out
    assert run("logs", *where, "--level", "warning").out.split()[-1] == "last"
    assert len(run("logs", *where, "-n", "2").out.splitlines()) == 2
    written = run("logs", "control", *where, "--json").out
    assert written == (directory / "logs" / "control.log").read_text()


@pytest.mark.parametrize("words", [("--level", "loud"), ("nobody",), ()])
def test_what_is_not_there_is_said(run: Run, directory: Path, words: tuple[str, ...]) -> None:
    where = directory if words else directory / "elsewhere"
    outcome = run("logs", *words, "--dir", str(where))
    assert outcome.code == 1
    assert "INVALID_ARGUMENT" in outcome.err


@contextmanager
def following(directory: Path, out: Path) -> Iterator[None]:
    command = [sys.executable, "-m", "sllm.cli.main", "logs", "-f", "--json"]
    command += ["--dir", str(directory)]
    with out.open("wb") as written, subprocess.Popen(command, stdout=written) as process:
        try:
            yield
        finally:
            process.terminate()


def test_what_comes_is_shown_once_it_is_whole(directory: Path, tmp_path: Path) -> None:
    """Also of a server that is new, and of one whose log was begun anew."""
    out, logs = tmp_path / "out", directory / "logs"

    def has(*events: str) -> bool:
        found = [json.loads(one).get("event") for one in out.read_text().splitlines() if "{" in one]
        return found[-len(events) :] == list(events)

    with following(directory, out):
        wait_until(lambda: has("last"), 60.0)
        whole = line(5, "whole")
        with (logs / "node-1.log").open("a") as log:
            log.write(whole[:9])
            log.flush()
            (logs / "node-2.log").write_text(line(6, "new"))
            wait_until(lambda: has("last", "new"), 20.0)
            log.write(whole[9:])
        wait_until(lambda: has("new", "whole"), 20.0)
        (logs / "control.log").write_text(line(7, "anew"))
        wait_until(lambda: has("whole", "anew"), 20.0)
