"""Where the time to a request's first token went."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from sllm.control.cluster.tiers import Tier


class PhaseKind(IntEnum):
    """A part of the way to the first token; the numbers are those of the protocol."""

    QUEUED = 1
    PLACED = 2
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


@dataclass(frozen=True, slots=True)
class Phase:
    """One part; parts may overlap."""

    kind: PhaseKind
    start: float
    """Seconds since the moment from which the phase is counted."""
    duration: float
    """Seconds."""
    size_bytes: int | None = None
    """Bytes moved, for phases that move any."""


@dataclass(frozen=True, slots=True)
class KeptPrompt:
    """Tokens of a prompt that were not computed, since their node has kept what comes of them."""

    tier: Tier
    """That had them when the request came."""
    tokens: int


@dataclass(frozen=True, slots=True)
class StartRecord:
    """How an instance came to be. Moments are the clock's seconds."""

    decided_at: float
    called_at: float
    """When the node was told: room had been made by then."""
    ready_at: float
    phases: tuple[Phase, ...]
    """The node's, counted from its taking the call."""
    from_tier: Tier | None
    """Highest tier of the node that held the weights. None: not known."""
    estimate: float | None
    """Seconds that placement had expected."""

    @property
    def origin(self) -> Tier | None:
        """The same, or other nodes where the node held nothing and most has come from those."""
        fetched, imported = map(self._bytes, (PhaseKind.FETCH_PEERS, PhaseKind.IMPORT))
        return Tier.PEER if self.from_tier is Tier.REMOTE and fetched > imported else self.from_tier

    def _bytes(self, kind: PhaseKind) -> int:
        return sum(phase.size_bytes or 0 for phase in self.phases if phase.kind is kind)

    @property
    def seconds(self) -> float:
        """From the decision to its being ready."""
        return self.ready_at - self.decided_at


@dataclass(frozen=True, slots=True)
class Timing:
    """A request's moments in the router, in the clock's seconds."""

    taken_at: float
    picked_at: float
    """When an instance was looked for and found."""
    dispatched_at: float
    """When the instance's node was called."""
    first_token_at: float | None
    """None: it has had no token."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What the caller is told."""

    cold: bool
    """Whether the request had to wait for an instance to start."""
    from_tier: Tier | None
    phases: tuple[Phase, ...]
    """Counted from the router's taking the request, in order of their start."""
    time_to_first_token: float
    """Seconds."""
    estimated_start: float | None
    node_id: str
    instance_id: str
    actual_start: float | None = None
    """Seconds that the estimated start has taken."""
    engine: str = ""
    """That the instance runs on."""
    deployment: str = ""
    """Whose instance that is."""
    adapter: str = ""
    """Over it, if the request was for one."""
    kept_prompt: tuple[KeptPrompt, ...] = ()
    """Of its prompt, what its node had kept."""


def assemble(
    timing: Timing,
    start: StartRecord | None,
    served: Sequence[Phase],
    *,
    node_id: str,
    instance_id: str,
    engine: str = "",
    deployment: str = "",
    adapter: str = "",
    kept_prompt: tuple[KeptPrompt, ...] = (),
) -> Receipt:
    """The receipt of a request that `start`'s instance served.

    Args:
        timing: The request's moments in the router.
        start: How the instance came to be, if that is known.
        served: The node's phases of the request, counted from its taking the call.
        node_id: Where it was served.
        instance_id: The instance that served it.
        engine: That this runs on.
        deployment: Whose instance that is.
        adapter: Over it, if the request was for one.
        kept_prompt: Of its prompt, what its node had kept.
    """
    cold = start is not None and start.ready_at > timing.taken_at
    begun = _cold_phases(timing, start) if start and cold else _warm_phases(timing)
    after = shift(served, timing.dispatched_at - timing.taken_at)
    first = timing.first_token_at
    return Receipt(
        cold=cold,
        from_tier=start.origin if start and cold else None,
        phases=tuple(sorted((*begun, *after), key=lambda phase: (phase.start, phase.kind))),
        time_to_first_token=0.0 if first is None else first - timing.taken_at,
        estimated_start=start.estimate if start and cold else None,
        node_id=node_id,
        instance_id=instance_id,
        actual_start=start.seconds if start and cold else None,
        engine=engine,
        deployment=deployment,
        adapter=adapter,
        kept_prompt=kept_prompt,
    )


def prefill_of(timing: Timing) -> tuple[Phase, ...]:
    """The phases of a request that has ended elsewhere than where its first token came from.

    No node tells them: the time from the call of that node to the first token stands in for the
    prefill, the way there and back included.
    """
    if timing.first_token_at is None:
        return ()
    return (Phase(PhaseKind.PREFILL, 0.0, timing.first_token_at - timing.dispatched_at),)


def _warm_phases(timing: Timing) -> list[Phase]:
    queued = timing.picked_at - timing.taken_at
    return [
        Phase(PhaseKind.QUEUED, 0.0, queued),
        Phase(PhaseKind.PLACED, queued, timing.dispatched_at - timing.picked_at),
    ]


def _cold_phases(timing: Timing, start: StartRecord) -> list[Phase]:
    """A start that had begun before the request came is counted from the request's coming."""
    queued = max(0.0, start.decided_at - timing.taken_at)
    called = max(queued, start.called_at - timing.taken_at)
    return [
        Phase(PhaseKind.QUEUED, 0.0, queued),
        Phase(PhaseKind.PLACED, queued, called - queued),
        *shift(start.phases, start.called_at - timing.taken_at),
    ]


def shift(phases: Sequence[Phase], seconds: float) -> list[Phase]:
    """`phases` counted from `seconds` earlier; what lies before the new origin is cut off."""
    shifted = []
    for phase in phases:
        start = phase.start + seconds
        end = start + phase.duration
        if end >= 0:
            begin = max(0.0, start)
            shifted.append(Phase(phase.kind, begin, end - begin, phase.size_bytes))
    return shifted
