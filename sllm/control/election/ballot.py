"""The election, as etcd keeps it: a key that hangs at its holder's lease, and a count of terms."""

import json
from dataclasses import dataclass
from typing import Final

from sllm import errors
from sllm.control.etcd.client import Etcd
from sllm.control.etcd.keys import NEVER, ChangedAt, CreatedAt, Entry, LeaseEnded, Put

LEADER: Final = "leader"
"""The key that the leading control plane holds, for as long as it leads."""
_TERM: Final = "term"


@dataclass(frozen=True, slots=True)
class Leader:
    """Who leads."""

    holder: str
    """Unique to one process."""
    address: str
    """host:port where it serves the others."""
    term: int


@dataclass(frozen=True, slots=True)
class Won:
    """An election that was won."""

    leader: Leader
    since: int
    """The revision of etcd at which it was."""
    lease: int
    """That has to be kept."""


class Ballot:
    """One control plane's side of the election. Its methods block.

    Each raises errors.StateUnavailable if etcd does not answer.
    """

    def __init__(self, etcd: Etcd, holder: str, address: str, lease_seconds: int) -> None:
        """`holder` and `address` as in `Leader`; the lease lasts whole seconds, 2 at least."""
        self._holder = holder
        self._etcd = etcd
        self._address = address
        self._lease_seconds = lease_seconds

    def look(self) -> Leader | None:
        """Who leads now. None: nobody does."""
        entry = self._etcd.get(LEADER)
        return _leader(entry) if entry else None

    def stand(self, above: int) -> Won | None:
        """Leads from now on, in a term above all before and `above`, unless somebody else does."""
        lease = self._etcd.grant(self._lease_seconds)
        won: Won | None = None
        try:
            won = self._stand(lease, above)
        except LeaseEnded:
            return None  # this process has stood still meanwhile
        finally:
            if won is None:
                self.resign(lease)
        return won

    def _stand(self, lease: int, above: int) -> Won | None:
        while True:
            before = self._etcd.get(_TERM)
            term = 1 + max(above, int(before.value) if before else 0)
            leader = Leader(self._holder, self._address, term)
            outcome = self._etcd.commit(
                [
                    CreatedAt(LEADER, NEVER),
                    ChangedAt(_TERM, before.changed_at if before else NEVER),
                ],
                [Put(LEADER, _encoded(leader), lease), Put(_TERM, str(term).encode())],
                otherwise=[LEADER],
            )
            if outcome.done:
                return Won(leader, outcome.revision, lease)
            if outcome.found[0]:
                return None

    def keep(self, lease: int, timeout: float) -> float:
        """Has a lease last for as long again; returns for how many seconds: 0 if it has ended."""
        return self._etcd.keep(lease, timeout)

    def resign(self, lease: int) -> None:
        """Lets others lead at once, if etcd can be told."""
        try:
            self._etcd.revoke(lease)
        except errors.StateUnavailable:
            return  # it ends by itself


def _encoded(leader: Leader) -> bytes:
    fields = {"holder": leader.holder, "address": leader.address, "term": leader.term}
    return json.dumps(fields).encode()


def _leader(entry: Entry) -> Leader:
    fields = json.loads(entry.value)
    return Leader(fields["holder"], fields["address"], fields["term"])
