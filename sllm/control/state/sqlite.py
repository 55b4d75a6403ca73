"""What has to survive a restart, in one SQLite file."""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sllm import errors
from sllm.control.cluster.specs import (
    AdapterInfo,
    Deployment,
    DeploymentSpec,
    EngineConfig,
    ModelInfo,
    ScalingPolicy,
)
from sllm.control.cluster.tiers import Tier
from sllm.control.state.database import Database
from sllm.control.types.calls import Answer, Call, Done
from sllm.control.types.pins import Pin, Place
from sllm.embedding.purpose import GENERATES, Purpose

ANSWER_SECONDS = 7 * 24 * 3600.0
"""How long an answer is kept for callers that repeat their call."""


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
        with _readable("deployments"):
            return [_deployment(*row) for row in rows]

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


@contextmanager
def _readable(table: str) -> Iterator[None]:
    """Raises StartFailed for a row that makes no sense: to leave it out would end what it names."""
    try:
        yield
    except (ValueError, RecursionError, TypeError, LookupError, AttributeError) as error:
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
        model=_model(json.loads(model)),
        created_at=created_at,
    )


def _model(fields: dict[str, Any]) -> ModelInfo:
    """Rows of earlier versions say of no purpose, and of no adapter."""
    told = fields.pop("purpose", None)
    adapter = fields.pop("adapter", None)
    if adapter is not None:
        modules = tuple(adapter.pop("target_modules"))
        adapter = AdapterInfo(target_modules=modules, **adapter)
    purpose = Purpose.of(told) if told else GENERATES
    return ModelInfo(**fields, purpose=purpose, adapter=adapter)
