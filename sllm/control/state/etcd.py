"""What has to survive a restart, in etcd: for several control planes, of which one writes."""

import base64
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, astuple
from typing import Any, Final

from sllm import errors
from sllm.control.cluster.specs import Deployment, ModelInfo
from sllm.control.cluster.tiers import Tier
from sllm.control.etcd.client import Etcd
from sllm.control.etcd.keys import (
    NEVER,
    Change,
    ChangedAt,
    CreatedAt,
    Delete,
    Entry,
    LeaseEnded,
    Put,
)
from sllm.control.state import records
from sllm.control.state.etcd_writer import Writer
from sllm.control.state.store import ANSWER_SECONDS, Contents, StoredAnswer
from sllm.control.tenants.limits import Limits
from sllm.control.types.access import ApiKey
from sllm.control.types.calls import Answer, Call, Done
from sllm.control.types.pins import Pin, Place

_FORMAT: Final = "format"
_VERSION: Final = b"1"
_DEPLOYMENTS: Final = "deployments/"
_PINS: Final = "pins/"
_DRAINED: Final = "drained/"
_ANSWERS: Final = "answers/"
_TENANTS: Final = "tenants/"
_KEYS: Final = "keys/"
_BATCHES: Final = "batch"
"""What is kept of batches, elsewhere."""
_KINDS: Final = (_DEPLOYMENTS, _PINS, _DRAINED, _ANSWERS, _TENANTS, _KEYS, _BATCHES)
_DAY: Final = 24 * 3600
_TOGETHER: Final = 50
"""Changes of one transaction, where many are made: etcd takes 128, and 1.5 MiB of them."""


class EtcdStore:
    """`Store` in etcd.

    Each of its changes is one transaction, which is made once, and not by who leads no more.
    """

    def __init__(
        self,
        etcd: Etcd,
        leads_since: int | None = None,
        in_doubt: Callable[[], None] = lambda: None,
    ) -> None:
        """Makes the store, if there is none; may block.

        Args:
            etcd: Where it is. Stays open when this is closed.
            leads_since: The revision at which this control plane took the lead. None: there is
                no leader, and what uses the store takes care of itself.
            in_doubt: Called if nobody knows whether a change was made: what is known of the store
                has to be read anew.

        Raises:
            errors.StateUnavailable: etcd does not answer.
            errors.StartFailed: There is something else, or a part of a store.
        """
        self._etcd = etcd
        self._writer = Writer(etcd, leads_since, in_doubt)
        self._answers_lease = (0, 0.0)
        """Its id, and when it was granted, in seconds since the epoch."""
        self._open()

    def check(self) -> None:
        """See Store."""
        if self._etcd.get(_FORMAT) is None:
            raise errors.StateUnavailable(
                f"what was stored in {self._etcd.name} is gone; restore etcd, and restart the "
                "control planes, or restart them and deploy again"
            )

    def deployments(self) -> list[Deployment]:
        """See Store."""
        with records.readable(f"a deployment in {self._etcd.name}"):
            return [_deployment(one) for one in self._etcd.under(_DEPLOYMENTS)]

    def recall(self, call: Call[Answer]) -> Answer | None:
        """See Store."""
        if not call.request_id:
            return None
        return _recalled(self._etcd.get(_ANSWERS + call.request_id), call)

    def put(self, deployment: Deployment, call: Call[Answer], answer: Answer, now: float) -> Answer:
        """See Store."""
        return self._once(call, answer, now, [_put_deployment(deployment)])

    def delete(self, name: str, call: Call[Done], now: float) -> None:
        """See Store."""
        changes = [Delete(_DEPLOYMENTS + name), Delete(f"{_PINS}{name}/", prefix=True)]
        self._once(call, Done.DONE, now, changes)

    def set_model(self, name: str, model: ModelInfo) -> None:
        """See Store."""
        key = _DEPLOYMENTS + name
        while entry := self._etcd.get(key):
            fields = json.loads(entry.value) | {"model": records.to_json(model)}
            unchanged = ChangedAt(key, entry.changed_at)
            if self._writer.change([unchanged], [_put(key, fields)]) is None:
                return

    def pins(self) -> list[Pin]:
        """See Store."""
        with records.readable(f"a pin in {self._etcd.name}"):
            return [_pin(one) for one in self._etcd.under(_PINS)]

    def put_pin(self, pin: Pin, call: Call[Pin], now: float) -> None:
        """See Store."""
        self._once(call, pin, now, [_put_pin(pin)])

    def delete_pins(
        self, places: Sequence[Place], call: Call[Answer], answer: Answer, now: float
    ) -> Answer:
        """See Store."""
        return self._once(call, answer, now, [Delete(_pin_key(place)) for place in places])

    def drained(self) -> list[str]:
        """See Store."""
        return [one.key.removeprefix(_DRAINED) for one in self._etcd.under(_DRAINED)]

    def set_drained(self, node_id: str, drained: bool, call: Call[Done], now: float) -> None:
        """See Store."""
        key = _DRAINED + node_id
        self._once(call, Done.DONE, now, [Put(key, b"") if drained else Delete(key)])

    def tenants(self) -> dict[str, Limits]:
        """See Store."""
        with records.readable(f"a tenant in {self._etcd.name}"):
            return dict(map(_tenant, self._etcd.under(_TENANTS)))

    def put_tenant(self, tenant: str, limits: Limits, call: Call[Done], now: float) -> None:
        """See Store."""
        self._once(call, Done.DONE, now, [_put_tenant(tenant, limits)])

    def keys(self) -> list[ApiKey]:
        """See Store."""
        with records.readable(f"a key in {self._etcd.name}"):
            return [_key(one) for one in self._etcd.under(_KEYS)]

    def put_key(self, key: ApiKey, call: Call[ApiKey], now: float) -> ApiKey:
        """See Store."""
        return self._once(call, key, now, [_put_key(key)])

    def remember(self, call: Call[Answer], answer: Answer, now: float) -> Answer:
        """See Store."""
        return self._once(call, answer, now, [])

    def contents(self) -> Contents:
        """See Store."""
        with records.readable(f"an answer in {self._etcd.name}"):
            answers = tuple(_stored_answer(one) for one in self._etcd.under(_ANSWERS))
        return Contents(
            tuple(self.deployments()),
            tuple(self.pins()),
            tuple(self.drained()),
            answers,
            self.tenants(),
            tuple(self.keys()),
        )

    def fill(self, contents: Contents) -> None:
        """See Store. Until all is there, it is no store to anybody."""
        if self.contents().anything:
            raise errors.StartFailed(
                f"{self._etcd.name} has deployments already; name another prefix, as in "
                "etcd://HOST:PORT/PREFIX"
            )
        self._writer.change([], [Delete(_FORMAT)])
        changes = list(self._changes_of(contents))
        for start in range(0, len(changes), _TOGETHER):
            self._writer.change([], changes[start : start + _TOGETHER])
        self._writer.change([], [Put(_FORMAT, _VERSION)])

    def close(self) -> None:
        """See Store."""

    # --- changes ------------------------------------------------------------------------------

    def _once(
        self, call: Call[Answer], answer: Answer, now: float, changes: Iterable[Change]
    ) -> Answer:
        """Makes `changes` and keeps the answer; a repeated call gets its first answer."""
        if not call.request_id:
            self._writer.change([], changes)
            return answer
        key = _ANSWERS + call.request_id
        kept = StoredAnswer(call.request_id, call.fingerprint, call.answers.encode(answer), now)
        while True:
            put = self._put_answer(kept)
            try:
                found = self._writer.change([CreatedAt(key, NEVER)], [*changes, put], [key])
            except LeaseEnded:
                self._answers_lease = (0, 0.0)
                continue
            first = None if found is None else _recalled(found[0], call)
            return answer if first is None else first

    # --- the store itself ---------------------------------------------------------------------

    def _open(self) -> None:
        found = self._etcd.get(_FORMAT)
        if found is None:
            self._check_empty()
            self._writer.change([CreatedAt(_FORMAT, NEVER)], [Put(_FORMAT, _VERSION)])
        elif found.value != _VERSION:
            raise errors.StartFailed(
                f"{self._etcd.name} was written by another version of sllm, in format "
                f"{found.value.decode(errors='replace')}; this one reads {_VERSION.decode()}"
            )

    def _check_empty(self) -> None:
        """Without its first key, what is there is a part of a store: of a move that was broken off.

        Raises:
            errors.StartFailed: There is something.
        """
        there = any(self._etcd.page(kind, kind, 1) for kind in _KINDS)
        if there and self._etcd.get(_FORMAT) is None:  # another control plane may begin as well
            raise errors.StartFailed(
                f"{self._etcd.name} has a part of what was to be moved there; delete it with "
                "`etcdctl del --prefix`, and move it again"
            )

    def _put_answer(self, kept: StoredAnswer) -> Put:
        """An answer goes by itself when its time is over: all of one day hang at one lease."""
        lease, granted_at = self._answers_lease
        if not lease or not 0 <= kept.answered_at - granted_at < _DAY:
            lease = self._etcd.grant(int(ANSWER_SECONDS) + _DAY)
            self._answers_lease = lease, kept.answered_at
        return _put_answer(kept, lease)

    def _changes_of(self, contents: Contents) -> Iterator[Change]:
        yield from map(_put_deployment, contents.deployments)
        yield from map(_put_pin, contents.pins)
        yield from (Put(_DRAINED + one, b"") for one in contents.drained)
        yield from map(self._put_answer, contents.answers)
        yield from map(_put_key, contents.keys)
        yield from (_put_tenant(one, its) for one, its in contents.tenants.items())


def _put(key: str, fields: dict[str, Any]) -> Put:
    return Put(key, json.dumps(fields).encode())


def _put_deployment(one: Deployment) -> Put:
    spec, model = records.to_json(one.spec), records.to_json(one.model)
    fields = {"spec": spec, "model": model, "created_at": one.created_at}
    return _put(_DEPLOYMENTS + one.name, fields)


def _deployment(entry: Entry) -> Deployment:
    fields = json.loads(entry.value)
    return records.deployment(fields["spec"], fields["model"], fields["created_at"])


def _pin_key(place: Place) -> str:
    return f"{_PINS}{place.deployment}/{place.tier.name}/{place.node_id}"


def _put_pin(pin: Pin) -> Put:
    return _put(_pin_key(pin.place), {"expires_at": pin.expires_at})


def _pin(entry: Entry) -> Pin:
    deployment, tier, node_id = entry.key.removeprefix(_PINS).split("/", 2)
    expires_at = json.loads(entry.value)["expires_at"]
    return Pin(Place(deployment, Tier[tier], node_id), expires_at)


def _put_tenant(tenant: str, limits: Limits) -> Put:
    return Put(_TENANTS + tenant, records.to_json(limits).encode())


def _tenant(entry: Entry) -> tuple[str, Limits]:
    return entry.key.removeprefix(_TENANTS), records.limits(entry.value.decode())


def _put_key(key: ApiKey) -> Put:
    return Put(_KEYS + key.key_id, json.dumps(astuple(key)).encode())


def _key(entry: Entry) -> ApiKey:
    return records.api_key(*json.loads(entry.value))


def _put_answer(kept: StoredAnswer, lease: int) -> Put:
    fields = asdict(kept) | {"answer": base64.b64encode(kept.answer).decode()}
    del fields["request_id"]
    return Put(_ANSWERS + kept.request_id, json.dumps(fields).encode(), lease)


def _stored_answer(entry: Entry) -> StoredAnswer:
    fields = json.loads(entry.value)
    fields["answer"] = base64.b64decode(fields["answer"])
    return StoredAnswer(request_id=entry.key.removeprefix(_ANSWERS), **fields)


def _recalled(entry: Entry | None, call: Call[Answer]) -> Answer | None:
    """The answer that is kept, if one is."""
    if entry is None:
        return None
    kept = _stored_answer(entry)
    call.check_repeats(kept.fingerprint)
    return call.answers.decode(kept.answer)
