"""Receipts: where the time of a request went.

All times are seconds.
"""

from dataclasses import dataclass

from sllm.client.types.enums import PhaseKind, Tier


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of the way to the first token. Phases may overlap."""

    kind: PhaseKind
    """What was done."""
    start: float
    """Seconds since the router took the request."""
    duration: float
    """Seconds."""
    size_bytes: int | None
    """Bytes moved, for phases that move any."""


@dataclass(frozen=True, slots=True)
class KeptPrompt:
    """Tokens of a prompt that were not computed: the node has kept what comes of them."""

    tier: Tier
    """That had them when the request came."""
    tokens: int


@dataclass(frozen=True, slots=True)
class Receipt:
    """Where the time to the first token went."""

    cold: bool
    """Whether the request had to wait for an instance to start."""
    from_tier: Tier | None
    """Highest tier that held the weights when the start was decided. None: a warm request."""
    phases: tuple[Phase, ...]
    """In order of their start."""
    time_to_first_token: float
    """Seconds from the router's taking the request to its relaying the first token."""
    estimated_start: float | None
    """Seconds that placement had estimated for the start. None: a warm request."""
    node_id: str
    """Node that served the request."""
    instance_id: str
    """Instance that served the request."""
    actual_start: float | None = None
    """Seconds that the start has taken, from the decision to its being ready. None: a warm
    request."""
    engine: str = ""
    """Engine that the instance runs on."""
    deployment: str = ""
    """Deployment whose instance that is."""
    adapter: str = ""
    """The adapter over it that the request was for. Empty: none."""
    kept_prompt: tuple[KeptPrompt, ...] = ()
    """Of the prompt, what the node had kept. Empty: nothing, or it was in the instance's cache."""
