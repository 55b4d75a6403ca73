"""Ends a worker that hangs: that neither steps nor answers for too long while it has requests.

Its requests then fail as those of any worker that has died, and go on elsewhere.
"""

from dataclasses import dataclass
from typing import Protocol

import structlog

from sllm.clock import Clock

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a worker with requests may be silent."""

    look_seconds: float = 2.0
    """Between two looks; an answer may take as long."""
    looks_unanswered: int = 5
    """Looks in a row without an answer. An agent that was itself held up, as by a machine that
    slept, finds one of them over, and has the others to hear from the worker."""
    looks_unmoved: int = 150
    """Looks in a row, answered, during which the engine has not begun a step."""


class Watched(Protocol):
    """A worker, as far as it is watched."""

    @property
    def running(self) -> int:
        """Requests that were submitted and have not ended."""
        ...

    async def steps(self, timeout: float) -> int | None:
        """Steps that its engine has begun. None: no answer within `timeout` seconds."""
        ...

    def kill(self, verdict: str) -> None:
        """Ends the process at once; `verdict` is what those who had requests are told of it."""
        ...


async def watch(worker: Watched, patience: Patience, clock: Clock) -> None:
    """Returns once it has ended a worker that hangs; an idle one is left alone."""
    unanswered, unmoved, last = 0, 0, -1
    while unanswered < patience.looks_unanswered and unmoved < patience.looks_unmoved:
        await clock.sleep(patience.look_seconds)
        # An idle worker is not asked: it may be silent, as nobody waits for it.
        steps = await worker.steps(patience.look_seconds) if worker.running else last
        unanswered = unanswered + 1 if steps is None else 0
        if steps is not None:
            unmoved = unmoved + 1 if steps == last and worker.running else 0
            last = steps
    verdict = "did not answer" if unanswered else "made no step"
    log.error("worker.hangs", verdict=verdict)
    worker.kill(f"{verdict} for {patience.look_seconds * (unanswered or unmoved):g} s or more")
