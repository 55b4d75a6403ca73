"""Changes in etcd, each of which is made once, and by whoever leads."""

import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from sllm import errors
from sllm.control.election.ballot import LEADER
from sllm.control.etcd.client import Etcd
from sllm.control.etcd.keys import (
    NEVER,
    Change,
    ChangedAt,
    Condition,
    CreatedAt,
    Entry,
    Outcome,
    Put,
)

_PATIENCE_SECONDS: Final = 5.0
"""How long a change is tried whose outcome is not known."""
_RETRY_SECONDS: Final = 0.1


class Writer:
    """Makes changes for one control plane. Its methods block.

    A change is one transaction, under the condition that nothing was changed since the last one
    from here, and that this control plane leads, if it is told which leader's it is. So one that is
    tried again is made once, and one that is late is not made at all.
    """

    def __init__(
        self,
        etcd: Etcd,
        leads_since: int | None,
        in_doubt: Callable[[], None],
        written: str = "written",
    ) -> None:
        """See EtcdStore.

        `written` is a key of its own for all that one thread writes: it names the last change, and
        so tells whether one was made whose answer was lost.
        """
        self._etcd = etcd
        self._written = written
        self._leads_since = leads_since
        self._in_doubt = in_doubt
        self._seen = NEVER
        self._doubts = False

    def change(
        self,
        conditions: Sequence[Condition],
        changes: Iterable[Change],
        otherwise: Sequence[str] = (),
    ) -> tuple[Entry | None, ...] | None:
        """Makes changes, once; returns None, or `otherwise` if a condition does not hold.

        Raises:
            errors.NotLeader: Another control plane leads, or this one leaves off, as it does not
                know what came of a change before; nothing was changed.
            errors.StateUnavailable: etcd does not answer, or not in time; or others have led and
                written meanwhile, so that nobody knows.
            LeaseEnded: A key was to hang at a lease that has ended.
        """
        if self._doubts and self._leads_since is not None:
            raise errors.NotLeader(
                "this control plane does not know all that it has changed, and leads no more; "
                "nothing was changed: try again"
            )
        token, changes = uuid.uuid4().hex.encode(), list(changes)
        while True:
            known = [ChangedAt(self._written, self._seen), *self._fence, *conditions]
            outcome = self._commit(known, [*changes, Put(self._written, token)], otherwise)
            if outcome.done:
                self._seen = outcome.revision
                return None
            written, leader, *found = outcome.found
            before, self._seen = self._seen, written.changed_at if written else NEVER
            if written and written.value == token:
                return None  # it was made, and the answer to that was lost
            if not self._leads(leader):
                if self._seen != before and self._made_in_time(token, before, leader):
                    return None
                raise errors.NotLeader(
                    "another control plane leads by now; nothing was changed: try again"
                )
            if self._seen == before:
                return tuple(found)

    def _commit(
        self, conditions: Sequence[Condition], changes: Sequence[Change], otherwise: Sequence[str]
    ) -> Outcome:
        """One transaction, tried until etcd answers or patience ends."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                return self._etcd.commit(conditions, changes, (self._written, LEADER, *otherwise))
            except errors.StateUnavailable as error:
                if error.retry_after is None:
                    raise  # etcd refuses, and nothing was changed
                if time.monotonic() >= deadline:
                    self._doubts = True  # what it knows may be old: nothing is to follow from it
                    self._in_doubt()
                    raise
            time.sleep(_RETRY_SECONDS)

    @property
    def _fence(self) -> list[Condition]:
        return [] if self._leads_since is None else [CreatedAt(LEADER, self._leads_since)]

    def _leads(self, leader: Entry | None) -> bool:
        leads_since = leader.created_at if leader else NEVER
        return self._leads_since in (None, leads_since)

    def _made_in_time(self, token: bytes, before: int, leader: Entry | None) -> bool:
        """Whether a change was made whose answer was lost, and after which others led and wrote.

        While this control plane led nobody else wrote, so it was the last one of that time.

        Raises:
            errors.StateUnavailable: Nobody knows by now.
        """
        then = leader and self._etcd.get_at(self._written, leader.created_at - 1)
        if then and then.value == token:
            return True
        if then and then.changed_at == before:
            return False
        raise errors.StateUnavailable(
            "other control planes have led meanwhile, and nobody knows whether this was changed: "
            "look, or try again",
            retry_after=1.0,
        )
