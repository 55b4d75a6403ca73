"""What a node holds: the tiers of its store and of its devices, seen as one."""

from dataclasses import dataclass, replace

from sllm.node.device.interface import Devices
from sllm.node.store.tier_store import TierStore
from sllm.node.tiers.types import Copy, Link, Tier, TierUsage


@dataclass(frozen=True, slots=True)
class Contents:
    """Every tier of one node, whoever keeps it. Belongs to the event loop."""

    store: TierStore
    devices: Devices

    def copies(self) -> tuple[Copy, ...]:
        """Every checkpoint on every tier, and those on their way."""
        return (*self.store.copies(), *self.devices.copies())

    def usage(self) -> tuple[TierUsage, ...]:
        """How full the tiers are."""
        return (*self.store.usage(), *self.devices.usage())

    def links(self) -> tuple[Link, ...]:
        """How fast bytes move between the tiers, and how many are waiting to."""
        return tuple(self._with_queue(link) for link in self.store.links())

    def _with_queue(self, link: Link) -> Link:
        if link.to_tier is not Tier.DEVICE:
            return link
        queued, in_flight = self.devices.queued_bytes, self.devices.in_flight_bytes
        return replace(link, queued_bytes=queued, in_flight_bytes=in_flight)

    async def evict(self, digest: str, tier: Tier) -> None:
        """Frees a checkpoint's room on a tier.

        Raises:
            errors.CheckpointNotFound: The tier does not hold it.
            errors.CheckpointLeased: It is in use, or being loaded.
        """
        if tier is Tier.DEVICE:
            await self.devices.evict(digest)
        else:
            await self.store.evict(digest, tier)
