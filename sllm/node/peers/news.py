"""What nodes say of the chunks that they have."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from sllm.node.tiers.types import Tier


@dataclass(frozen=True, slots=True)
class News:
    """What a node says of the chunks that it has."""

    tier: Tier
    """Where it reads them."""
    whole: bool = False
    arrived: Mapping[int, str] = field(default_factory=dict)
    """Digests of chunks that have come. Empty: it has not said."""
    begun: Collection[int] = ()
    """Those that it gets for all."""
    manifest: bytes = b""
    """`manifest.json`, if it was asked for."""
    left: Mapping[int, str] = field(default_factory=dict)
    """Chunks that it was to get for all, and which node does so in its place."""
    asks: str = ""
    """The node that is to leave it some of those."""
    layout: str = ""
    """Names which bytes of the source are in which chunk. Empty: it does not say."""
