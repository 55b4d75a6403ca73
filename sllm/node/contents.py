"""What a node holds on the tiers of its store and of its devices: brought up, held, evicted."""

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, replace
from functools import partial

from sllm.clock import Clock
from sllm.node.device.interface import Devices
from sllm.node.instances.ready_maker import ReadyMaker
from sllm.node.instances.room import Room
from sllm.node.instances.zygotes import AUTO
from sllm.node.peers.types import Peers
from sllm.node.store.holds import Holds, HoldSpec
from sllm.node.store.promotions import Promotions
from sllm.node.store.tier_store import TierStore
from sllm.node.tiers.types import Copy, Link, Tier, TierUsage
from sllm.node.transfers.loads import Tell
from sllm.node.transfers.work import Priority, Progress


@dataclass(frozen=True, slots=True)
class Promotion:
    """A checkpoint that is to be on a tier although no instance needs it now."""

    source: str
    """Its URL, or a path."""
    dtype: str | None
    """Name of a torch dtype that its weights are converted to. None: as stored."""
    tier: Tier
    """SSD or DRAM."""
    hold: HoldSpec | None = None
    """What keeps it there. None: nothing does."""
    pack: bool = False
    """Whether SSD gets a packed copy of what could be served where it lies."""
    give_up: bool = False
    """Whether the work ends with its caller. What is to be held is brought up in any case."""
    identity: str = ""
    """Of what the source must be. Empty: whatever it is."""
    engine: str = AUTO
    """What is to serve it: what was made ready for that comes along, as far as there is room."""
    tensor_parallel: int = 1
    """Devices that serve it together."""
    peers: Peers | None = None
    """Other nodes to have it from. None: its source alone."""


class Contents:
    """Every tier of one node, whoever keeps it. Belongs to the event loop."""

    def __init__(
        self,
        store: TierStore,
        devices: Devices,
        room: Room,
        ready_maker: ReadyMaker,
        clock: Clock,
        changed: Callable[[], None],
    ) -> None:
        """Holds what was on SSD before.

        Args:
            store: has SSD and the pool.
            devices: have tiers of their own.
            room: makes some for what is brought up.
            ready_maker: knows what was made of it for its engine.
            clock: tells when holds end.
            changed: called when there is a new hold.
        """
        self._store = store
        self._devices = devices
        self._room = room
        self._ready_maker = ready_maker
        self._promotions = Promotions()
        self.holds = Holds(clock, changed, store.keeping.pinned)

    def copies(self) -> tuple[Copy, ...]:
        """Every checkpoint on every tier, and those on their way."""
        return (*self._store.copies(), *self._devices.copies())

    def usage(self) -> tuple[TierUsage, ...]:
        """How full the tiers are."""
        return (*self._store.usage(), *self._devices.usage())

    def links(self) -> tuple[Link, ...]:
        """How fast bytes move between the tiers, and how many are waiting to."""
        return tuple(self._with_queue(link) for link in self._store.links())

    def promote(self, promotion: Promotion) -> AsyncGenerator[Progress]:
        """Brings a checkpoint up, giving progress until it is there, and held.

        Raises:
            errors.SllmError: As `TierStore.promote`.
            errors.ShuttingDown: The node is going down.
        """
        give_up = promotion.give_up and promotion.hold is None
        return self._promotions.follow(partial(self._promote, promotion), give_up=give_up)

    async def evict(self, digest: str, tier: Tier) -> None:
        """Frees a checkpoint's room on a tier.

        Raises:
            errors.CheckpointNotFound: The tier does not hold it.
            errors.CheckpointLeased: It is in use, or being loaded.
        """
        if tier is Tier.DEVICE:
            await self._devices.evict(digest)
        else:
            await self._store.evict(digest, tier)

    async def close(self) -> None:
        """Ends all holds and promotions, and begins no more."""
        self.holds.close()
        await self._promotions.close()

    async def _promote(self, promotion: Promotion, tell: Tell) -> None:
        reach = partial(
            self._store.promote,
            promotion.source,
            promotion.dtype,
            promotion.tier,
            tell,
            priority=Priority.PREFETCH,
            pack=promotion.pack,
            identity=promotion.identity,
            peers=promotion.peers,
        )
        bring_up = partial(self._room.bring_up, reach)
        if promotion.hold is None:
            (await bring_up()).release()
            return
        await self.holds.bring_up(promotion.hold, promotion.tier, bring_up)
        if promotion.tier is Tier.DRAM and promotion.engine != AUTO:
            await self._ready_maker.read_ahead(
                promotion.source, promotion.dtype, promotion.engine, promotion.tensor_parallel
            )

    def _with_queue(self, link: Link) -> Link:
        if link.to_tier is not Tier.DEVICE:
            return link
        queued, in_flight = self._devices.queued_bytes, self._devices.in_flight_bytes
        return replace(link, queued_bytes=queued, in_flight_bytes=in_flight)
