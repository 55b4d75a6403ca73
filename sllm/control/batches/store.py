"""Batches in one SQLite file, so that they survive a restart.

Of each request either it is there, or what has come of it.
"""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from sllm.control.state.database import Database
from sllm.control.types.batches import Asks, Batch, Ended, Item, Outcome

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS batches (
    batch_id TEXT PRIMARY KEY,
    run_id TEXT NOT NULL UNIQUE,
    fingerprint TEXT NOT NULL,
    requests INTEGER NOT NULL,
    created_at REAL NOT NULL,
    expires_at REAL NOT NULL,
    finished INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    ended_at REAL,
    cancelled INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS requests (
    run_id TEXT NOT NULL,
    number INTEGER NOT NULL,
    request_id TEXT NOT NULL,
    deployment TEXT NOT NULL,
    request BLOB NOT NULL,
    PRIMARY KEY (run_id, number)
) STRICT;
CREATE INDEX IF NOT EXISTS requests_by_deployment ON requests (run_id, deployment, number);
CREATE TABLE IF NOT EXISTS results (
    run_id TEXT NOT NULL,
    number INTEGER NOT NULL,
    outcome BLOB NOT NULL,
    PRIMARY KEY (run_id, number)
) STRICT;
"""
_COLUMNS: Final = ", ".join(field.name for field in fields(Batch))
_OF_ITEM: Final = ", ".join(field.name for field in fields(Item))
_MARKS: Final = ", ".join("?" for _ in fields(Batch))


class BatchStore:
    """`BatchKeeper` in one SQLite file."""

    def __init__(self, path: Path) -> None:
        """Opens the file, or makes it. What was never submitted to its end is removed.

        Raises:
            errors.StartFailed: It is none of SQLite's, or is damaged, or may not be written; or
                another control plane uses its directory.
            OSError: There can be no such directory.
        """
        self._db = Database(path, _SCHEMA)
        self._add_asks()
        for table in ("requests", "results"):
            unmade = f"DELETE FROM {table} WHERE run_id NOT IN (SELECT run_id FROM batches)"
            self._db.execute(unmade)

    def _add_asks(self) -> None:
        """Files of earlier versions, which knew of generations alone, say nothing of it."""
        columns = self._db.execute("SELECT name FROM pragma_table_info('requests')")
        if ("asks",) not in columns:
            self._db.execute("ALTER TABLE requests ADD COLUMN asks INTEGER NOT NULL DEFAULT 0")

    def batches(self) -> list[Batch]:
        """See BatchKeeper."""
        rows = self._db.execute(f"SELECT {_COLUMNS} FROM batches ORDER BY created_at, batch_id")
        return [_batch(row) for row in rows]

    def stage(self, items: Sequence[Item]) -> None:
        """See BatchKeeper."""
        with self._db.transaction():
            for one in items:
                row = [getattr(one, field.name) for field in fields(Item)]
                self._db.execute(
                    f"INSERT INTO requests ({_OF_ITEM}) VALUES (?, ?, ?, ?, ?, ?)", row
                )

    def stage_results(self, run_id: str, outcomes: Sequence[Outcome]) -> None:
        """See BatchKeeper."""
        with self._db.transaction():
            for one in outcomes:
                row = (run_id, one.number, one.outcome)
                self._db.execute("INSERT INTO results VALUES (?, ?, ?)", row)

    def unstage(self, run_id: str) -> None:
        """See BatchKeeper."""
        self._db.execute("DELETE FROM requests WHERE run_id = ?", (run_id,))

    def add(self, batch: Batch) -> None:
        """See BatchKeeper."""
        self._put(batch)

    def deployments(self, run_id: str) -> list[str]:
        """See BatchKeeper."""
        rows = self._db.execute(
            "SELECT DISTINCT deployment FROM requests WHERE run_id = ?", (run_id,)
        )
        return [name for (name,) in rows]

    def waiting(self, run_id: str, deployment: str, after: int, count: int) -> list[Item]:
        """See BatchKeeper."""
        rows = self._db.execute(
            f"SELECT {_OF_ITEM} FROM requests WHERE "
            " run_id = ? AND deployment = ? AND number > ? ORDER BY number LIMIT ?",
            (run_id, deployment, after, count),
        )
        return [_item(row) for row in rows]

    def record(self, batch: Batch, ended: Sequence[Ended], now: float) -> Batch:
        """See BatchKeeper."""
        with self._db.transaction():
            new = [one for one in ended if self._take(one.item)]
            count = batch.finished + batch.failed
            for number, one in enumerate(new, count):
                row = (batch.run_id, number, one.outcome)
                self._db.execute("INSERT INTO results VALUES (?, ?, ?)", row)
            answers = sum(one.is_answer for one in new)
            after = batch.with_results(answers, len(new) - answers, now)
            self._put(after)
        return after

    def cancel(self, batch: Batch) -> None:
        """See BatchKeeper."""
        with self._db.transaction():
            self._put(batch)
            self.unstage(batch.run_id)

    def results(self, run_id: str, first: int, count: int) -> list[Outcome]:
        """See BatchKeeper."""
        rows = self._db.execute(
            "SELECT number, outcome FROM results WHERE run_id = ? AND number >= ? "
            "ORDER BY number LIMIT ?",
            (run_id, first, count),
        )
        return [Outcome(*row) for row in rows]

    def delete(self, batch: Batch) -> None:
        """See BatchKeeper."""
        with self._db.transaction():
            for table in ("requests", "results", "batches"):
                self._db.execute(f"DELETE FROM {table} WHERE run_id = ?", (batch.run_id,))

    def close(self) -> None:
        """See BatchKeeper."""
        self._db.close()

    def _take(self, item: Item) -> bool:
        """Removes a request; says whether it was there."""
        key = (item.run_id, item.number)
        removed = "DELETE FROM requests WHERE run_id = ? AND number = ? RETURNING number"
        return bool(self._db.execute(removed, key))

    def _put(self, batch: Batch) -> None:
        row = [getattr(batch, field.name) for field in fields(Batch)]
        self._db.execute(f"INSERT OR REPLACE INTO batches ({_COLUMNS}) VALUES ({_MARKS})", row)


def _item(row: Sequence[Any]) -> Item:
    values = {field.name: value for field, value in zip(fields(Item), row, strict=True)}
    return Item(**{**values, "asks": Asks(values["asks"])})


def _batch(row: Sequence[Any]) -> Batch:
    values = {field.name: value for field, value in zip(fields(Batch), row, strict=True)}
    return Batch(**{**values, "cancelled": bool(values["cancelled"])})
