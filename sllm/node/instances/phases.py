"""Where the time of a start goes: the node's part of a receipt."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum

from sllm.clock import Clock


class PhaseKind(IntEnum):
    """Parts of a start and of a request; the numbers are those of the protocol."""

    IMPORT = 3
    READ_SSD = 4
    DEVICE_COPY = 5
    WORKER_START = 6
    PREPARE = 7
    ATTACH = 8
    ENGINE_INIT = 9
    PREFILL = 10
    WARM_UP = 11
    FETCH_PEERS = 12


_LOADS = (
    PhaseKind.IMPORT,
    PhaseKind.FETCH_PEERS,
    PhaseKind.READ_SSD,
    PhaseKind.DEVICE_COPY,
)
_PREPARATIONS = (PhaseKind.WORKER_START, PhaseKind.PREPARE)


@dataclass(frozen=True, slots=True)
class Phase:
    """One part; parts may overlap."""

    kind: PhaseKind
    start: float
    """Seconds since the timeline began."""
    duration: float
    """Seconds."""
    size_bytes: int | None = None
    """Bytes moved, if any are."""


class Timeline:
    """Phases as they are measured, counted from the timeline's making."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._origin = clock.now()
        self._phases: list[Phase] = []

    @property
    def phases(self) -> tuple[Phase, ...]:
        """What has been measured, in order of start."""
        return tuple(sorted(self._phases, key=lambda phase: (phase.start, phase.kind)))

    @property
    def elapsed(self) -> float:
        """Seconds since the timeline began."""
        return self._clock.now() - self._origin

    @property
    def prepare_seconds(self) -> float:
        """Seconds until the worker was prepared, beside the load; what came before it included."""
        preparations = (phase for phase in self._phases if phase.kind in _PREPARATIONS)
        return max((phase.start + phase.duration for phase in preparations), default=0.0)

    @property
    def attach_seconds(self) -> float:
        """Seconds from the worker's being prepared and the weights' being in place to now."""
        before = (phase for phase in self._phases if phase.kind in _PREPARATIONS + _LOADS)
        ends = (phase.start + phase.duration for phase in before)
        return self.elapsed - max(ends, default=0.0)

    def add(
        self, kind: PhaseKind, began: float, duration: float, size_bytes: int | None = None
    ) -> None:
        """Records a phase that began at the clock's `began` and took `duration` seconds."""
        self._phases.append(Phase(kind, began - self._origin, duration, size_bytes))

    def add_ending_now(
        self,
        kind: PhaseKind,
        duration: float,
        *,
        before: float = 0.0,
        size_bytes: int | None = None,
    ) -> None:
        """Records a phase of `duration` seconds that ended `before` seconds ago."""
        self.add(kind, self._clock.now() - before - duration, duration, size_bytes)

    @contextmanager
    def phase(self, kind: PhaseKind) -> Iterator[None]:
        """Measures what happens inside; a phase that fails is recorded too."""
        began = self._clock.now()
        try:
            yield
        finally:
            self.add(kind, began, self._clock.now() - began)
