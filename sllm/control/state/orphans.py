"""Instances that no deployment explains: kept for a while, in case their deployment comes back.

A control plane that has lost what it had stored finds them when nodes report, with all that they
still generate. They get no requests, and are the first to go where their room is needed.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from sllm.control.cluster.instances import Instance

_DELETED_KEPT: Final = 10_000


@dataclass(frozen=True, slots=True)
class Orphan:
    """How long an instance is kept."""

    deadline: float
    """Clock's seconds."""
    ends_at: float
    """The same moment, in seconds since the epoch."""


class Orphans:
    """Belongs to the event loop."""

    def __init__(self) -> None:
        self._kept: dict[str, Orphan] = {}
        """By instance."""
        self._deleted: dict[str, None] = {}
        """Deployments that were deleted here, the latest: what is left of them is no orphan."""

    @property
    def next_deadline(self) -> float | None:
        """When the first of them is to end, in the clock's seconds."""
        return min((one.deadline for one in self._kept.values()), default=None)

    def ends_at(self, instance_id: str) -> float | None:
        """When an orphan is to end, in seconds since the epoch. None: the instance is none."""
        orphan = self._kept.get(instance_id)
        return orphan.ends_at if orphan else None

    def keeps(self, instance: Instance, until: Orphan) -> bool:
        """Whether an instance without a deployment stays for now; `until` counts the first time."""
        if instance.deployment in self._deleted:
            return False
        self._kept.setdefault(instance.instance_id, until)
        return True

    def take_due(self, now: float) -> list[str]:
        """Those whose time is up; they are kept no longer."""
        due = [key for key, one in self._kept.items() if one.deadline <= now]
        self.forget(due)
        return due

    def forget(self, instance_ids: Iterable[str]) -> set[str]:
        """Ends the keeping of those that are adopted or gone; returns which were kept."""
        return {key for key in instance_ids if self._kept.pop(key, None)}

    def deployment_made(self, name: str) -> None:
        """A deployment of this name exists again."""
        self._deleted.pop(name, None)

    def deployment_deleted(self, name: str) -> None:
        """What is still found of a deployment is not to wait for its return."""
        self._deleted[name] = None
        if len(self._deleted) > _DELETED_KEPT:
            del self._deleted[next(iter(self._deleted))]
