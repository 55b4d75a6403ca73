"""Which prompts a node keeps, by names of what they begin with, for whoever chooses among nodes."""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from sllm.clock import Clock
from sllm.node.kept.choice import OVERHEAD_SECONDS
from sllm.node.kept.contents import KeptContents
from sllm.node.transfers.speeds import Speed

_MOST: Final = 4096
"""Names that are remembered, those that were used last."""
_LEAST_SECONDS: Final = 0.01
"""What saves less is nothing that anybody would choose a node for."""
_LOOK_SECONDS: Final = 1.0
"""How old what is told may be: pages come and go with every request."""


@dataclass(frozen=True, slots=True)
class NamedPages:
    """What a name stands for."""

    name: int
    """See `sllm.prompt_prefixes`."""
    key: bytes
    """Of the last page that it fills."""
    pages: int
    """That it fills."""
    page_tokens: int


class NamedPrefixes:
    """Belongs to the event loop."""

    def __init__(
        self, contents: KeptContents, from_ssd: Speed, from_pool: Speed, clock: Clock
    ) -> None:
        self._contents = contents
        self._from_ssd = from_ssd
        self._from_pool = from_pool
        self._clock = clock
        self._named: OrderedDict[int, NamedPages] = OrderedDict()
        self._saved: dict[int, float] = {}
        self._looked_at = float("-inf")

    def note(self, named: Iterable[NamedPages]) -> None:
        """A prompt begins so; whether its pages are kept shows when they are looked for."""
        for one in named:
            self._named[one.name] = one
            self._named.move_to_end(one.name)
        while len(self._named) > _MOST:
            self._named.popitem(last=False)

    def saved(self) -> dict[int, float]:
        """By name, the seconds that prompts which begin so are computed sooner here."""
        now = self._clock.now()
        if self._named and now - self._looked_at >= _LOOK_SECONDS:
            self._looked_at = now
            gains = ((name, self._gain(one)) for name, one in self._named.items())
            self._saved = {name: gain for name, gain in gains if gain >= _LEAST_SECONDS}
        return self._saved

    def _gain(self, one: NamedPages) -> float:
        contents = self._contents
        if not contents.is_here(one.key):
            return 0.0
        segment = contents.by_key[one.key]
        if segment.seconds_per_token is None:
            return 0.0
        size = one.pages * segment.page_bytes
        cost = OVERHEAD_SECONDS + size / self._from_pool.bytes_per_second
        if not contents.is_in_pool(segment):
            cost += size / self._from_ssd.bytes_per_second
        computing = one.pages * one.page_tokens * segment.seconds_per_token
        return float(f"{computing - cost:.2g}")  # so that it is not told anew with every request
