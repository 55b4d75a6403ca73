"""What another node has told of itself."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from sllm.node.peers.news import News
from sllm.node.tiers.types import Tier


@dataclass(slots=True, eq=False)
class Giver:
    """Another node, as it has told."""

    name: str
    fellow: bool
    """Whether it is getting the checkpoint, or has done so since."""
    awaited_until: float
    """When its first answer is not waited for any more."""
    tier: Tier = Tier.REMOTE
    """Where it reads what it gives."""
    answered: bool = False
    whole: bool = False
    has: set[int] = field(default_factory=set)
    fresh: set[int] = field(default_factory=set)
    """Those of them that were not looked at since they came."""
    begun: dict[int, float] = field(default_factory=dict)
    """What is on its way to it, for all, and since when."""
    slowest: float = 0.0
    """Seconds that the slowest of these has taken which has come."""
    in_flight: int = 0

    def gives(self, chunk: int) -> bool:
        """Whether it has a chunk."""
        return self.whole or chunk in self.has

    def told(self, news: News, count: int, now: float) -> None:
        """Takes in what it says, of a checkpoint of so many chunks."""
        new = {chunk for chunk in news.arrived if chunk < count}
        if news.whole:  # whoever has had it from the beginning gets no part of it for others
            self.whole, self.fellow = True, self.fellow and self.answered
            new = set(range(count)) - self.has
        self.answered, self.tier = True, news.tier
        self.has |= new
        self.fresh |= new
        for chunk in new & self.begun.keys():
            self.slowest = max(self.slowest, now - self.begun.pop(chunk))
        lacking = (chunk for chunk in news.begun if chunk < count and chunk not in self.has)
        self.begun.update((chunk, now) for chunk in lacking)


def best(givers: Iterable[Giver]) -> Giver | None:
    """Memory before disk, and whoever has less to do."""
    return min(givers, key=lambda one: (-one.tier, one.in_flight), default=None)
