"""What stays on a tier although nothing uses it: pins and prefetches, until they expire."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass

from sllm.clock import Clock
from sllm.node.store.lease import Lease
from sllm.node.tiers.types import Tier


@dataclass(frozen=True, slots=True)
class HoldSpec:
    """A hold that is asked for."""

    hold_id: str
    """Unique on the node; a hold of the same id is replaced."""
    ttl: float | None
    """Seconds for which it lasts, from when the checkpoint is there. None: until its release."""


@dataclass(frozen=True, slots=True)
class Hold:
    """A hold that is in force."""

    hold_id: str
    digest: str
    tier: Tier
    expires_at: float | None
    """Seconds since the epoch, for people. None: it lasts until its release."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """A hold, and what it consists of: a lease that nobody else knows."""

    hold: Hold
    held: ExitStack
    expiry: asyncio.Task[None] | None

    def end(self) -> None:
        self.held.close()
        if self.expiry:
            self.expiry.cancel()


class Holds:
    """The holds of a node. Belongs to the event loop. A hold ends with the agent's process."""

    def __init__(
        self,
        clock: Clock,
        changed: Callable[[], None],
        pinned: Callable[[Lease], AbstractContextManager[None]],
    ) -> None:
        """Holds nothing yet.

        Args:
            clock: tells when holds end.
            changed: called when there is a new one.
            pinned: see `Keeping.pinned`.
        """
        self._pinned = pinned
        self._clock = clock
        self._changed = changed
        self._kept: dict[str, _Kept] = {}
        self._wishes: dict[str, object] = {}
        """The newest call for each hold that is on its way."""

    async def bring_up(
        self, spec: HoldSpec, tier: Tier, promote: Callable[[], Awaitable[Lease]]
    ) -> None:
        """Brings a checkpoint up to a tier and holds it there.

        If the hold was released meanwhile, or asked for again, this call leaves none.

        Args:
            spec: the hold.
            tier: SSD or DRAM.
            promote: brings the checkpoint up there, as `TierStore.promote` does.

        Raises:
            SllmError: as `TierStore.promote`; a hold of the same id stays as it was.
        """
        wish = self._wishes[spec.hold_id] = object()
        try:
            lease = await promote()
        finally:
            # It may have been released meanwhile, or a later call may be on its way.
            wanted = self._wishes.get(spec.hold_id) is wish
            if wanted:
                del self._wishes[spec.hold_id]
        if wanted:
            self._keep(spec, lease, tier)
        else:
            lease.release()

    def release(self, hold_id: str) -> None:
        """Ends a hold; one that is not there is no error."""
        self._wishes.pop(hold_id, None)
        if kept := self._kept.pop(hold_id, None):
            kept.end()

    def on(self, digest: str, tier: Tier) -> tuple[Hold, ...]:
        """The holds on a tier's copy of a checkpoint, in order of their ids."""
        holds = (kept.hold for kept in self._kept.values())
        found = (hold for hold in holds if (hold.digest, hold.tier) == (digest, tier))
        return tuple(sorted(found, key=lambda hold: hold.hold_id))

    def close(self) -> None:
        """Ends all holds, those on their way included."""
        for hold_id in {*self._kept, *self._wishes}:
            self.release(hold_id)

    def _keep(self, spec: HoldSpec, lease: Lease, tier: Tier) -> None:
        former = self._kept.pop(spec.hold_id, None)
        expires_at = None if spec.ttl is None else time.time() + spec.ttl
        expiry = None
        if spec.ttl is not None:
            expiry = asyncio.create_task(self._expire(spec.hold_id, spec.ttl))
        hold = Hold(spec.hold_id, lease.digest, tier, expires_at)
        held = ExitStack()
        held.callback(lease.release)
        held.enter_context(self._pinned(lease))
        self._kept[spec.hold_id] = _Kept(hold, held, expiry)
        if former:
            former.end()
        self._changed()

    async def _expire(self, hold_id: str, ttl: float) -> None:
        await self._clock.sleep(ttl)
        self._kept.pop(hold_id).held.close()
