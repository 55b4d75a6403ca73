"""What is asked of etcd, and what it answers: keys, conditions, changes."""

from dataclasses import dataclass
from typing import Final, TypeAlias

NEVER: Final = 0
"""The revision of a key that is not there."""


class LeaseEnded(Exception):
    """There is no such lease any more."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A key as it is."""

    key: str
    value: bytes
    created_at: int
    """The revision of etcd at which the key was made."""
    changed_at: int
    """The revision at which it got this value."""


@dataclass(frozen=True, slots=True)
class CreatedAt:
    """A condition: the key was made at this revision; at `NEVER`, it is not there."""

    key: str
    revision: int


@dataclass(frozen=True, slots=True)
class ChangedAt:
    """A condition: the key got its value at this revision; at `NEVER`, it is not there."""

    key: str
    revision: int


@dataclass(frozen=True, slots=True)
class Put:
    """A change: the key has this value, for as long as its lease lasts if it has one."""

    key: str
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    """A change: the key is not there, nor is any that begins with it if `prefix` says so."""

    key: str
    prefix: bool = False


Condition: TypeAlias = CreatedAt | ChangedAt
Change: TypeAlias = Put | Delete


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a transaction."""

    done: bool
    """Whether all conditions held, and all changes are made."""
    revision: int
    """Of etcd, after it."""
    found: tuple[Entry | None, ...] = ()
    """If not: the keys that were to be read then, as they were at that moment."""
