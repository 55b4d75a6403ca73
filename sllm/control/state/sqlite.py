"""What has to survive a restart, in one SQLite file."""

import dataclasses
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sllm import errors
from sllm.control.cluster.specs import (
    Deployment,
    DeploymentSpec,
    EngineConfig,
    ModelInfo,
    ScalingPolicy,
)
from sllm.control.cluster.tiers import Tier
from sllm.control.types.calls import Answer, Call, Done
from sllm.control.types.pins import Pin, Place

ANSWER_SECONDS = 7 * 24 * 3600.0
"""How long an answer is kept for callers that repeat their call."""

_LOCK_SECONDS = 0.1
"""How long to wait for another program's lock; callers are told to try again, not kept waiting."""
_RETRY_SECONDS = 1.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS deployments (
    name TEXT PRIMARY KEY,
    spec TEXT NOT NULL,
    model TEXT NOT NULL,
    created_at REAL NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS pins (
    deployment TEXT NOT NULL,
    tier INTEGER NOT NULL,
    node_id TEXT NOT NULL,
    expires_at REAL,
    PRIMARY KEY (deployment, tier, node_id)
) STRICT;
CREATE TABLE IF NOT EXISTS drained_nodes (
    node_id TEXT PRIMARY KEY
) STRICT;
CREATE TABLE IF NOT EXISTS answers (
    request_id TEXT PRIMARY KEY,
    fingerprint TEXT NOT NULL,
    answer BLOB NOT NULL,
    answered_at REAL NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS answers_by_age ON answers (answered_at);
"""


class SqliteStore:
    """`Store` in one SQLite file."""

    def __init__(self, path: Path) -> None:
        """Opens the file, or makes it; may block.

        Raises:
            errors.StartFailed: It is none of SQLite's, is damaged, or may not be written.
            OSError: There can be no such directory.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = sqlite3.connect(
                path,
                timeout=_LOCK_SECONDS,
                isolation_level=None,
                check_same_thread=False,
                factory=_Connection,
            )
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")  # what is said must survive a power cut
            self._db.executescript(_SCHEMA)
        except (sqlite3.Error, errors.StateUnavailable) as error:
            raise errors.StartFailed(
                f"{path} cannot be used: {error.__cause__ or error}; end what else uses it, restore it, or move it "
                "away to begin without deployments"
            ) from error

    def deployments(self) -> list[Deployment]:
        """See Store."""
        rows = self._db.execute("SELECT spec, model, created_at FROM deployments ORDER BY name")
        with _readable("deployments"):
            return [_deployment(*row) for row in rows]

    def recall(self, call: Call[Answer]) -> Answer | None:
        """See Store."""
        row = self._db.execute(
            "SELECT fingerprint, answer FROM answers WHERE request_id = ?", (call.request_id,)
        ).fetchone()
        if row is None or not call.request_id:
            return None
        fingerprint, answer = row
        call.check_repeats(fingerprint)
        return call.answers.decode(answer)

    def put(self, deployment: Deployment, call: Call[Answer], answer: Answer, now: float) -> Answer:
        """See Store."""
        spec, model = _to_json(deployment.spec), _to_json(deployment.model)
        row = (deployment.name, spec, model, deployment.created_at)
        change = "INSERT OR REPLACE INTO deployments VALUES (?, ?, ?, ?)"
        return self._once(call, answer, now, [(change, row)])

    def delete(self, name: str, call: Call[Done], now: float) -> None:
        """See Store."""
        changes = [
            ("DELETE FROM deployments WHERE name = ?", (name,)),
            ("DELETE FROM pins WHERE deployment = ?", (name,)),
        ]
        self._once(call, Done.DONE, now, changes)

    def set_model(self, name: str, model: ModelInfo) -> None:
        """See Store."""
        self._db.execute("UPDATE deployments SET model = ? WHERE name = ?", (_to_json(model), name))

    def pins(self) -> list[Pin]:
        """See Store."""
        rows = self._db.execute("SELECT deployment, tier, node_id, expires_at FROM pins")
        with _readable("pins"):
            return [Pin(Place(name, Tier(tier), node_id), end) for name, tier, node_id, end in rows]

    def put_pin(self, pin: Pin, call: Call[Pin], now: float) -> None:
        """See Store."""
        row = (*_place(pin.place), pin.expires_at)
        change = "INSERT OR REPLACE INTO pins VALUES (?, ?, ?, ?)"
        self._once(call, pin, now, [(change, row)])

    def delete_pins(
        self, places: Sequence[Place], call: Call[Answer], answer: Answer, now: float
    ) -> Answer:
        """See Store."""
        change = "DELETE FROM pins WHERE deployment = ? AND tier = ? AND node_id = ?"
        return self._once(call, answer, now, [(change, _place(place)) for place in places])

    def drained(self) -> list[str]:
        """See Store."""
        return [node_id for (node_id,) in self._db.execute("SELECT node_id FROM drained_nodes")]

    def set_drained(self, node_id: str, drained: bool, call: Call[Done], now: float) -> None:
        """See Store."""
        add, remove = (
            "INSERT OR REPLACE INTO drained_nodes VALUES (?)",
            "DELETE FROM drained_nodes WHERE node_id = ?",
        )
        self._once(call, Done.DONE, now, [(add if drained else remove, (node_id,))])

    def remember(self, call: Call[Answer], answer: Answer, now: float) -> Answer:
        """See Store."""
        return self._once(call, answer, now, [])

    def close(self) -> None:
        """See Store."""
        self._db.close()

    def _once(
        self,
        call: Call[Answer],
        answer: Answer,
        now: float,
        changes: Iterable[tuple[str, Sequence[Any]]],
    ) -> Answer:
        """Carries `changes` out and keeps the answer; a repeated call gets its first answer."""
        with self._transaction():
            if (first := self.recall(call)) is not None:
                return first
            for change, row in changes:
                self._db.execute(change, row)
            self._record(call, answer, now)
        return answer

    def _record(self, call: Call[Answer], answer: Answer, now: float) -> None:
        self._db.execute("DELETE FROM answers WHERE answered_at < ?", (now - ANSWER_SECONDS,))
        if call.request_id:
            self._db.execute(
                "INSERT INTO answers VALUES (?, ?, ?, ?)",
                (call.request_id, call.fingerprint, call.answers.encode(answer), now),
            )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        # Whoever else has the file open is met here, and not at the commit.
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # SQLite has rolled back itself if the disk is full
                self._db.execute("ROLLBACK")
            raise


class _Connection(sqlite3.Connection):
    """A connection whose failures are those that callers know."""

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        """As sqlite3.Connection.

        Raises:
            errors.StateUnavailable: The disk is full, or another program has locked the file.
        """
        try:
            return super().execute(sql, parameters)
        except sqlite3.Error as error:
            raise errors.StateUnavailable(
                f"the control plane cannot store or read its state now: {error}; make room on its "
                "disk, or end what has locked its state.db, and try again",
                retry_after=_RETRY_SECONDS,
            ) from error


@contextmanager
def _readable(table: str) -> Iterator[None]:
    """Raises StartFailed for a row that makes no sense: to leave it out would end what it names."""
    try:
        yield
    except (sqlite3.Error, ValueError, TypeError, LookupError, AttributeError) as error:
        raise errors.StartFailed(
            f"a row of {table} in state.db cannot be read: {type(error).__name__}: {error}; "
            "restore the file, or delete the row"
        ) from error


def _place(place: Place) -> tuple[str, int, str]:
    return place.deployment, int(place.tier), place.node_id


def _to_json(value: DeploymentSpec | ModelInfo) -> str:
    return json.dumps(dataclasses.asdict(value))


def _deployment(spec: str, model: str, created_at: float) -> Deployment:
    fields: dict[str, Any] = json.loads(spec)
    engine, scaling = EngineConfig(**fields.pop("engine")), ScalingPolicy(**fields.pop("scaling"))
    return Deployment(
        spec=DeploymentSpec(engine=engine, scaling=scaling, **fields),
        model=ModelInfo(**json.loads(model)),
        created_at=created_at,
    )
