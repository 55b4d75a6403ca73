"""The store: what was answered is there after a restart, and a repeated call changes nothing."""

import json
import os
import signal
import sqlite3
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sllm import errors
from sllm.control.cluster.specs import AdapterInfo, ModelInfo
from sllm.control.state.sqlite import ANSWER_SECONDS, SqliteStore
from sllm.control.types.calls import DONE_ALONE, UNASKED, Call, Done
from sllm.embedding.purpose import Purpose, Task
from tests.control.shapes import call, deployment
from tests.processes import started

ONE = deployment("one")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deeper" / "state.db"


def test_deployments_come_back_as_they_were(path: Path) -> None:
    store = SqliteStore(path)
    engine = replace(ONE.spec.engine, kv_cache_tokens=5)
    full = replace(ONE, spec=replace(ONE.spec, engine=engine, chat_template="{{ 'hi' }}"))
    store.put(full, call(""), b"answer", 1.0)
    store.put(deployment("another"), call(""), b"answer", 1.0)
    adapter = AdapterInfo(4, ("q_proj", "v_proj"), "A")
    over = replace(
        deployment("over"),
        spec=replace(deployment("over").spec, base="one"),
        model=replace(ONE.model, adapter=adapter),
    )
    store.put(over, call(""), b"answer", 1.0)
    store.close()
    again = SqliteStore(path)
    assert again.deployments() == [deployment("another"), full, over]
    again.close()


def test_a_repeated_call_gets_the_first_answer_and_changes_nothing(path: Path) -> None:
    store = SqliteStore(path)
    first = call("id")
    assert store.recall(first) is None
    assert store.put(ONE, first, b"first", 1.0) == b"first"
    assert store.put(deployment("one", size_bytes=7), first, b"second", 2.0) == b"first"
    assert store.remember(first, b"third", 2.0) == b"first"
    assert store.recall(first) == b"first"
    assert store.deployments() == [ONE]
    store.close()


def test_what_is_deleted_again_by_the_same_call_stays(path: Path) -> None:
    store = SqliteStore(path)
    deletion = Call("id", "content", DONE_ALONE)
    store.put(ONE, call(""), b"", 1.0)
    store.delete("one", deletion, 2.0)
    assert store.deployments() == []
    store.put(ONE, call(""), b"", 3.0)
    store.delete("one", deletion, 4.0)
    assert store.recall(deletion) is Done.DONE
    assert store.deployments() == [ONE]
    store.close()


def test_an_id_is_for_one_content(path: Path) -> None:
    store = SqliteStore(path)
    store.put(ONE, call("id"), b"first", 1.0)
    with pytest.raises(errors.RequestIdInUse):
        store.put(deployment("two"), call("id", "other"), b"second", 1.0)
    assert store.deployments() == [ONE]
    store.close()


def test_calls_without_an_id_are_not_remembered(path: Path) -> None:
    store = SqliteStore(path)
    store.put(ONE, call(""), b"first", 1.0)
    assert store.put(ONE, call("", "other"), b"second", 1.0) == b"second"
    assert store.recall(call("")) is None
    store.close()


def test_answers_are_forgotten_after_a_week(path: Path) -> None:
    store = SqliteStore(path)
    store.put(ONE, call("old"), b"first", 1.0)
    store.put(ONE, call("new"), b"second", 2.0 + ANSWER_SECONDS)
    assert store.recall(call("old", "whatever")) is None
    store.close()


def test_what_becomes_known_of_a_model_is_kept(path: Path) -> None:
    store = SqliteStore(path)
    store.put(ONE, call(""), b"", 1.0)
    model = ModelInfo("Fake", 1, 2, 3, "digest")
    store.set_model("one", model)
    store.set_model("nobody", model)
    assert [one.model for one in store.deployments()] == [model]
    store.delete("one", UNASKED, 1.0)
    assert store.deployments() == []
    store.close()


def test_what_a_model_is_for_is_kept(path: Path) -> None:
    store = SqliteStore(path)
    purpose = Purpose(Task.SCORE, labels=("good", "bad"), activation="softmax")
    known = deployment("one", purpose=purpose)
    store.put(known, call(""), b"", 1.0)
    (kept,) = store.deployments()
    assert kept == known
    assert kept.model.purpose.task is Task.SCORE
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
