"""The store: what was answered is there after a restart, and a repeated call changes nothing."""

import json
import os
import signal
import sqlite3
import sys
from pathlib import Path

import pytest

from sllm import errors
from sllm.control.state.sqlite import SqliteStore
from sllm.control.state.store import ANSWER_SECONDS
from tests.control.shapes import call, deployment
from tests.processes import started

ONE = deployment("one")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deeper" / "state.db"


def test_answers_are_forgotten_after_a_week(path: Path) -> None:
    store = SqliteStore(path)
    store.put(ONE, call("old"), b"first", 1.0)
    store.put(ONE, call("new"), b"second", 2.0 + ANSWER_SECONDS)
    assert store.recall(call("old", "whatever")) is None
    store.close()


def test_rows_of_earlier_versions_say_nothing_of_copies_and_generate(path: Path) -> None:
    store = SqliteStore(path)
    known = deployment("one", private_bytes=7, private_bytes_per_request=3)
    store.put(known, call(""), b"", 1.0)
    assert store.deployments() == [known]
    store.close()
    with sqlite3.connect(path) as rows:
        (model,) = rows.execute("SELECT model FROM deployments").fetchone()
        fields = json.loads(model)
        earlier = {
            name: fields[name] for name in fields if not name.startswith(("private_", "purpose"))
        }
        assert len(earlier) == len(fields) - 3
        rows.execute("UPDATE deployments SET model = ?", (json.dumps(earlier),))
    rows.close()
    store = SqliteStore(path)
    assert [one.model for one in store.deployments()] == [known.model.without_private]
    store.close()


WRITER = """
import itertools, sys
from pathlib import Path
from sllm.control.state.sqlite import SqliteStore
from tests.control.shapes import call, deployment
store = SqliteStore(Path(sys.argv[1]))
for index in itertools.count():
    store.put(deployment(f"d{index}"), call(f"r{index}"), b"answer", 1.0)
    print(index, flush=True)
"""


def test_what_was_answered_survives_sigkill(path: Path) -> None:
    with started([sys.executable, "-c", WRITER, str(path)]) as writer:
        assert writer.stdout
        for _ in range(20):
            answered = int(writer.stdout.readline())
        os.kill(writer.pid, signal.SIGKILL)
        answered = max([answered, *map(int, writer.stdout.read().split())])

    store = SqliteStore(path)
    names = {one.name for one in store.deployments()}
    for index in range(answered + 1):
        assert f"d{index}" in names
        assert store.recall(call(f"r{index}")) == b"answer"
    assert len(names) in (answered + 1, answered + 2), "half a transaction"
    store.close()


def test_a_file_that_is_no_store_is_told(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("this is no database, but a letter to whoever comes after us")
    with pytest.raises(errors.StartFailed, match=r"state\.db cannot be used: .*move it away"):
        SqliteStore(path)
