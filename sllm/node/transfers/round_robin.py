"""Whose chunk goes next, where several loads share a way."""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from sllm.node.transfers.work import Priority


class Job(Protocol):
    """A load's work, which is done chunk by chunk."""

    priority: Callable[[], Priority]
    """Asked before every turn, in any thread."""


AnyJob = TypeVar("AnyJob", bound=Job)


def _always(_: Any) -> bool:
    return True


def next_in_line(jobs: list[AnyJob], ready: Callable[[AnyJob], bool] = _always) -> AnyJob | None:
    """The first in line of the most urgent that are `ready`. It goes to the end of the line.

    So loads of the same priority take turns, a chunk each, and share the way fairly however large
    they are; those that a request waits for go before all others.
    """
    for job in sorted(jobs, key=lambda job: job.priority()):
        if ready(job):
            jobs.remove(job)
            jobs.append(job)
            return job
    return None
