"""What each tenant has used since this control plane began."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Held:
    """What a tenant holds at one moment."""

    devices: int = 0
    """Of its instances, each as often as instances are on it."""
    bytes_by_tier: Mapping[str, float] = field(default_factory=dict)
    """Of its checkpoints; what several hold is counted in equal parts."""


@dataclass(slots=True)
class Usage:
    """What one tenant has used."""

    requests: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    device_seconds: float = 0.0
    """Devices, times the seconds for which instances had them."""
    byte_seconds: dict[str, float] = field(default_factory=dict)
    """Bytes of checkpoints, times the seconds for which they were there, by tier."""

    def hold(self, held: Held, seconds: float) -> None:
        """Counts what was held for so long."""
        self.device_seconds += held.devices * seconds
        for tier, size in held.bytes_by_tier.items():
            self.byte_seconds[tier] = self.byte_seconds.get(tier, 0.0) + size * seconds


class UsageBook:
    """Adds up what tenants use, of all that have ever used anything."""

    def __init__(self) -> None:
        self.of: dict[str, Usage] = {}
        self._looked_at: float | None = None

    def tenant(self, name: str) -> Usage:
        """What a tenant has used; to be added to."""
        return self.of.setdefault(name, Usage())

    def look(self, held: Mapping[str, Held], now: float) -> None:
        """Counts what is held at the clock's second `now` for the time since the last look."""
        seconds = 0.0 if self._looked_at is None else now - self._looked_at
        self._looked_at = now
        for name, its in held.items():
            self.tenant(name).hold(its, seconds)
