"""What has to survive a restart, in one SQLite file."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

from sllm import errors
from sllm.control.cluster.specs import Deployment, ModelInfo
from sllm.control.cluster.tiers import Tier
from sllm.control.state import records
from sllm.control.state.database import Database
from sllm.control.state.store import ANSWER_SECONDS, Contents, StoredAnswer
from sllm.control.tenants.limits import Limits
from sllm.control.types.access import ApiKey
from sllm.control.types.calls import Answer, Call, Done
from sllm.control.types.pins import Pin, Place

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
CREATE TABLE IF NOT EXISTS tenants (
    tenant TEXT PRIMARY KEY,
    limits TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS keys (
    key_id TEXT PRIMARY KEY,
    digest TEXT NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    role INTEGER NOT NULL,
    created_at REAL NOT NULL,
    expires_at REAL,
    revoked_at REAL,
    note TEXT NOT NULL
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
            errors.StartFailed: It is none of SQLite's, is damaged, or may not be written; or
                another control plane uses its directory.
            OSError: There can be no such directory.
        """
        self._db = Database(path, _SCHEMA)

    def check(self) -> None:
        """See Store."""
        self._db.check()

    def deployments(self) -> list[Deployment]:
        """See Store."""
        rows = self._db.execute("SELECT spec, model, created_at FROM deployments ORDER BY name")
        with records.readable("a row of deployments in state.db"):
            return [records.deployment(*row) for row in rows]

    def recall(self, call: Call[Answer]) -> Answer | None:
        """See Store."""
        rows = self._db.execute(
            "SELECT fingerprint, answer FROM answers WHERE request_id = ?", (call.request_id,)
        )
        if not rows or not call.request_id:
            return None
        ((fingerprint, answer),) = rows
        call.check_repeats(fingerprint)
        return call.answers.decode(answer)

    def put(self, deployment: Deployment, call: Call[Answer], answer: Answer, now: float) -> Answer:
        """See Store."""
        row = _row(deployment)
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
        self._db.execute(
            "UPDATE deployments SET model = ? WHERE name = ?", (records.to_json(model), name)
        )

    def pins(self) -> list[Pin]:
        """See Store."""
        rows = self._db.execute("SELECT deployment, tier, node_id, expires_at FROM pins")
        with records.readable("a row of pins in state.db"):
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

    def tenants(self) -> dict[str, Limits]:
        """See Store."""
        rows = self._db.execute("SELECT tenant, limits FROM tenants ORDER BY tenant")
        with records.readable("a row of tenants in state.db"):
            return {tenant: records.limits(text) for tenant, text in rows}

    def put_tenant(self, tenant: str, limits: Limits, call: Call[Done], now: float) -> None:
        """See Store."""
        change = "INSERT OR REPLACE INTO tenants VALUES (?, ?)"
        self._once(call, Done.DONE, now, [(change, (tenant, records.to_json(limits)))])

    def keys(self) -> list[ApiKey]:
        """See Store."""
        rows = self._db.execute("SELECT * FROM keys ORDER BY key_id")
        with records.readable("a row of keys in state.db"):
            return [records.api_key(*row) for row in rows]

    def put_key(self, key: ApiKey, call: Call[ApiKey], now: float) -> ApiKey:
        """See Store."""
        change = "INSERT OR REPLACE INTO keys VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
        return self._once(call, key, now, [(change, astuple(key))])

    def remember(self, call: Call[Answer], answer: Answer, now: float) -> Answer:
        """See Store."""
        return self._once(call, answer, now, [])

    def contents(self) -> Contents:
        """See Store."""
        answers = self._db.execute(
            "SELECT request_id, fingerprint, answer, answered_at FROM answers ORDER BY request_id"
        )
        return Contents(
            deployments=tuple(self.deployments()),
            pins=tuple(self.pins()),
            drained=tuple(self.drained()),
            answers=tuple(StoredAnswer(*row) for row in answers),
            tenants=self.tenants(),
            keys=tuple(self.keys()),
        )

    def fill(self, contents: Contents) -> None:
        """See Store."""
        with self._db.transaction():
            if self.contents().anything:
                raise errors.StartFailed(
                    f"{self._db.path} has deployments already; move it away, or name another place"
                )
            for table, rows in _tables(contents):
                for row in rows:
                    marks = ", ".join("?" for _ in row)
                    self._db.execute(f"INSERT INTO {table} VALUES ({marks})", row)

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
        with self._db.transaction():
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


def _tables(contents: Contents) -> Iterator[tuple[str, list[Sequence[Any]]]]:
    """The rows of each table."""
    yield "deployments", [_row(one) for one in contents.deployments]
    yield "pins", [(*_place(one.place), one.expires_at) for one in contents.pins]
    yield "drained_nodes", [(one,) for one in contents.drained]
    yield "tenants", [(one, records.to_json(its)) for one, its in contents.tenants.items()]
    yield "keys", [astuple(one) for one in contents.keys]
    yield "answers", [astuple(one) for one in contents.answers]


def _row(deployment: Deployment) -> tuple[str, str, str, float]:
    spec, model = records.to_json(deployment.spec), records.to_json(deployment.model)
    return deployment.name, spec, model, deployment.created_at


def _place(place: Place) -> tuple[str, int, str]:
    return place.deployment, int(place.tier), place.node_id
