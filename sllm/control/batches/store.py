"""Batches in one SQLite file, so that they survive a restart.

Of each request either it is there, or what has come of it.
"""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from sllm.control.state.database import Database
from sllm.control.types.batches import Batch, Ended, Item, Outcome

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
_MARKS: Final = ", ".join("?" for _ in fields(Batch))


class BatchStore:
    """All batches. Its methods block, and are called one at a time.

    Each is one transaction, and raises errors.StateUnavailable if it cannot be: then it has done
    nothing.
    """

    def __init__(self, path: Path) -> None:
        """Opens the file, or makes it. What was never submitted to its end is removed.

        Raises:
            errors.StartFailed: It is none of SQLite's, or is damaged, or may not be written; or
                another control plane uses its directory.
            OSError: There can be no such directory.
        """
        self._db = Database(path, _SCHEMA)
        self._db.execute("DELETE FROM requests WHERE run_id NOT IN (SELECT run_id FROM batches)")

    def batches(self) -> list[Batch]:
        """All of them, the oldest first."""
        rows = self._db.execute(f"SELECT {_COLUMNS} FROM batches ORDER BY created_at, batch_id")
        return [_batch(row) for row in rows]

    def stage(self, items: Sequence[Item]) -> None:
        """Stores requests of a batch that is still being submitted."""
        with self._db.transaction():
            for one in items:
                row = (one.run_id, one.number, one.request_id, one.deployment, one.request)
                self._db.execute("INSERT INTO requests VALUES (?, ?, ?, ?, ?)", row)

    def unstage(self, run_id: str) -> None:
        """Forgets what was stored of a batch that is not to be."""
        self._db.execute("DELETE FROM requests WHERE run_id = ?", (run_id,))

    def add(self, batch: Batch) -> None:
        """Makes a batch of what was staged for it."""
        self._put(batch)

    def deployments(self, run_id: str) -> list[str]:
        """Names of those that a batch still has requests for."""
        rows = self._db.execute(
            "SELECT DISTINCT deployment FROM requests WHERE run_id = ?", (run_id,)
        )
        return [name for (name,) in rows]

    def waiting(self, run_id: str, deployment: str, after: int, count: int) -> list[Item]:
        """The next `count` requests of a batch for a deployment whose numbers come after one."""
        rows = self._db.execute(
            "SELECT run_id, number, request_id, deployment, request FROM requests "
            "WHERE run_id = ? AND deployment = ? AND number > ? ORDER BY number LIMIT ?",
            (run_id, deployment, after, count),
        )
        return [Item(*row) for row in rows]

    def record(self, batch: Batch, ended: Sequence[Ended], now: float) -> Batch:
        """Puts results in the place of requests, and returns the batch as it is from then on.

        A request that has a result already keeps it.
        """
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
        """Stores that a batch is `batch` now, and drops the requests of it that wait."""
        with self._db.transaction():
            self._put(batch)
            self.unstage(batch.run_id)

    def results(self, run_id: str, first: int, count: int) -> list[Outcome]:
        """At most `count` results of a batch, from number `first` on."""
        rows = self._db.execute(
            "SELECT number, outcome FROM results WHERE run_id = ? AND number >= ? "
            "ORDER BY number LIMIT ?",
            (run_id, first, count),
        )
        return [Outcome(*row) for row in rows]

    def delete(self, batch: Batch) -> None:
        """Forgets a batch with all that belongs to it."""
        with self._db.transaction():
            for table in ("requests", "results", "batches"):
                self._db.execute(f"DELETE FROM {table} WHERE run_id = ?", (batch.run_id,))

    def close(self) -> None:
        """Ends the use of the store."""
        self._db.close()

    def _take(self, item: Item) -> bool:
        """Removes a request; says whether it was there."""
        key = (item.run_id, item.number)
        removed = "DELETE FROM requests WHERE run_id = ? AND number = ? RETURNING number"
        return bool(self._db.execute(removed, key))

    def _put(self, batch: Batch) -> None:
        row = [getattr(batch, field.name) for field in fields(Batch)]
        self._db.execute(f"INSERT OR REPLACE INTO batches ({_COLUMNS}) VALUES ({_MARKS})", row)


def _batch(row: Sequence[Any]) -> Batch:
    values = {field.name: value for field, value in zip(fields(Batch), row, strict=True)}
    return Batch(**{**values, "cancelled": bool(values["cancelled"])})
