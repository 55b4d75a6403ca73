"""Pins in force: stored, then applied by their nodes, and again whenever a node comes back."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing

import structlog

from sllm import errors
from sllm.clock import Clock
from sllm.control.cluster.needs import Checkpoint, need_of
from sllm.control.cluster.nodes import NodeView
from sllm.control.cluster.specs import ModelInfo
from sllm.control.cluster.tiers import Tier
from sllm.control.config import ControlConfig
from sllm.control.operations.jobs import Job, Jobs
from sllm.control.state import tier_bytes
from sllm.control.state.durable import Durable
from sllm.control.state.state import State
from sllm.control.tasks import Tasks
from sllm.control.tenants.limits import check_pinned
from sllm.control.tenants.names import tenant_of
from sllm.control.types import pins
from sllm.control.types.calls import UNASKED, Answer, Call, Done
from sllm.control.types.pins import Keep, Pin, Place
from sllm.control.types.status import Loading
from sllm.control.wire.node_messages import HoldSpec
from sllm.control.wire.nodes import Nodes

log = structlog.get_logger()

_RETRY_SECONDS = 10.0
"""Between two tries to apply a pin for which its node, back again, has no room."""


class Pinning:
    """The pins, in memory, in the store and on the nodes."""

    def __init__(
        self, durable: Durable, state: State, nodes: Nodes, clock: Clock, config: ControlConfig
    ) -> None:
        self._durable = durable
        self._state = state
        self._nodes = nodes
        self._clock = clock
        self._timeout = config.start_timeout_seconds
        self._pins: dict[Place, Pin] = {}
        self._restoring: set[Pin] = set()
        """Those that are being applied again, and tried until they are."""
        self._jobs: Jobs[Place, Loading, Pin] = Jobs()
        self._tasks = Tasks()
        self._changing = asyncio.Lock()

    async def load(self) -> None:
        """Takes in what was stored before a restart."""
        stored = await self._durable.run(self._durable.store.pins)
        self._pins = {pin.place: pin for pin in stored}
        await self._drop_expired()
        for pin in self._pins.values():
            self._count(pin)

    def end_streams(self) -> None:
        """Ends the streams of callers with ShuttingDown."""
        self._jobs.close()

    async def close(self) -> None:
        """Leaves all work to the nodes, which go on with it."""
        self._jobs.close()
        await self._tasks.close()

    async def pin(
        self, place: Place, ttl: float | None, call: Call[Pin]
    ) -> AsyncGenerator[Loading | Pin]:
        """Pins a checkpoint; yields progress, and the pin once it is in force.

        Args:
            place: Where.
            ttl: Seconds until the pin ends by itself. None: it does not.
            call: As its caller named it.

        Raises:
            errors.SllmError: Why not; then nothing is pinned there.
        """
        begun = await self._begun(place, ttl, call)
        if isinstance(begun, Pin):
            yield begun
            return
        async with aclosing(begun.follow()) as steps:
            async for step in steps:
                yield step
        yield await begun.result()

    async def unpin(
        self, deployment: str, tier: Tier | None, node_id: str, call: Call[Sequence[Pin]]
    ) -> Sequence[Pin]:
        """Ends the pins of a deployment: those on one tier or all, on one node or everywhere.

        Raises:
            errors.DeploymentNotFound: There is no such deployment.
            errors.PinNotFound: Nothing of it is pinned there.
        """
        async with self._changing:
            first = await self._durable.recall(call)
            if first is not None:
                return first
            await self._drop_expired()
            found = self._found(deployment, tier, node_id)
            await self._delete(found, call, found)
        releases = [self._release_later(pin.place) for pin in found]
        if releases:
            await asyncio.wait(releases)  # they go on if the caller leaves meanwhile
        return found

    def pins(self, deployment: str) -> dict[str, tuple[Pin, bool]]:
        """The pins, each with whether its node says that it holds it, by the key that orders them.

        Args:
            deployment: Only those of this one. Empty: all.

        Raises:
            errors.DeploymentNotFound: There is no such deployment.
        """
        if deployment:
            self._state.deployment(deployment)
        now = time.time()
        return {
            f"{place.deployment}/{place.tier.name}/{place.node_id}": (pin, self._is_held(place))
            for place, pin in self._pins.items()
            if deployment in ("", place.deployment) and not pin.is_over(now)
        }

    def pinned_bytes(self, tenant: str) -> int:
        """Bytes that the pins of a tenant keep; of one checkpoint in one place only once."""
        own = [place for place in self._pins if tenant_of(place.deployment) == tenant]
        kept = {(one, place.tier, place.node_id) for one, place in self._pinned(own)}
        return sum(checkpoint.size_bytes for checkpoint, _, _ in kept)

    def _pinned(self, places: Iterable[Place]) -> Iterator[tuple[Checkpoint, Place]]:
        """What is pinned there. A deployment may have gone while a pin of it was stored."""
        for place in places:
            if need := self._state.needs.get(place.deployment):
                yield need.checkpoint, place

    def _is_held(self, place: Place) -> bool:
        view = self._state.fleet.nodes.get(place.node_id)
        return view is not None and place.hold_id in _held(view)

    def node_joined(self, view: NodeView) -> None:
        """Applies the pins of a node that has come, and releases what is pinned there no more."""
        here = {place.hold_id: pin for place, pin in self._pins.items() if _is_on(view, place)}
        for pin in set(here.values()) - self._restoring:  # a loop outlives a short absence
            self._restoring.add(pin)
            self._tasks.spawn(self._restore(pin), name=f"pin {pin.place.hold_id}")
        for stale in _held(view) - here.keys():
            if stale.startswith(pins.PREFIX):
                self._tasks.spawn(self._release_hold(view.node_id, stale), name=f"unpin {stale}")

    def deployment_deleted(self, name: str) -> None:
        """Ends the pins of a deployment; the store has forgotten them with it."""
        for place in [place for place in self._pins if place.deployment == name]:
            self._forget(place)
            self._release_later(place)

    # --- a pin comes --------------------------------------------------------------------------

    async def _begun(
        self, place: Place, ttl: float | None, call: Call[Pin]
    ) -> Job[Loading, Pin] | Pin:
        """What a call has begun, now or when it was first made; or the pin that came of it."""
        async with self._changing:  # of two same calls at once, the second is a repetition
            if first := await self._durable.recall(call):
                return self._jobs.get(place) or first
            return await self._begin(place, ttl, call)

    async def _begin(self, place: Place, ttl: float | None, call: Call[Pin]) -> Job[Loading, Pin]:
        await self._drop_expired()
        self._check(place)
        now = time.time()
        pin = Pin(place, None if ttl is None else now + ttl)
        self._count(pin)  # before it is stored: what else comes meanwhile has to fit beside it
        try:
            await self._durable.run(self._durable.store.put_pin, pin, call, now)
            self._pins[place] = pin
        finally:
            self._state.pinned.intersection_update(self._pins)
        return self._jobs.begin(place, lambda tell: self._apply(pin, tell))

    def _check(self, place: Place) -> None:
        """Refuses what could not be pinned, before anything moves."""
        size = self._state.deployment(place.deployment).model.size_bytes
        view = self._state.working_node(place.node_id)
        if place not in self._pins:
            tenant, limits = tenant_of(place.deployment), self._state.tenants.limits_of
            check_pinned(tenant, limits(tenant), self.pinned_bytes(tenant) + size)
            checkpoint = self._state.needs[place.deployment].checkpoint
            tier_bytes.check(self._state, Keep(tenant, checkpoint, place.tier, place.node_id))
        here = [one for one in self._pins if (one.tier, one.node_id) == (place.tier, place.node_id)]
        neighbours = {one for one, _ in self._pinned(here)}
        neighbours -= {self._state.needs[place.deployment].checkpoint}
        pins.check_room(view, place.tier, size, [one.size_bytes for one in neighbours])

    async def _apply(self, pin: Pin, tell: Callable[[Loading], None]) -> Pin:
        """Has the node hold the checkpoint. If the node refuses, the pin is deleted."""
        try:
            await self._hold(pin, tell)
        except errors.SllmError:
            if self._pins.get(pin.place) is pin:
                await self._delete([pin], UNASKED, Done.DONE)
                await self._release(pin.place)
            raise
        if self._pins.get(pin.place) is not pin:
            raise errors.Cancelled(f"{pin.place.deployment} was unpinned, or pinned anew")
        return pin

    async def _hold(self, pin: Pin, tell: Callable[[Loading], None]) -> None:
        deployment = self._state.deployment(pin.place.deployment)
        spec = deployment.spec
        node = self._nodes.member(pin.place.node_id)
        hold = HoldSpec(pin.place.hold_id, pin.remaining(time.time()))
        with self._state.deliveries.to(node.node_id, need_of(deployment).checkpoint) as givers:
            promotion = node.promote(
                spec.source,
                spec.engine.dtype,
                pin.place.tier,
                self._timeout,
                hold,
                pack=spec.engine.pack,
                identity=deployment.model.identity,
                engine=spec.engine.engine,
                givers=givers,
            )
            async with aclosing(promotion) as steps:
                async for step in steps:
                    if not isinstance(step, ModelInfo):
                        tell(step)

    async def _restore(self, pin: Pin) -> None:
        """Applies a pin for as long as its node is there and has not done so."""
        try:
            await self._until_held(pin)
        finally:
            self._restoring.discard(pin)

    async def _until_held(self, pin: Pin) -> None:
        while self._pins.get(pin.place) is pin and not pin.is_over(time.time()):
            try:
                return await self._hold(pin, lambda _: None)
            except (errors.NodeLost, errors.NodeNotFound):
                return None  # when it comes back it is applied again
            except errors.DeploymentNotFound:
                return await self._drop_orphan(pin)
            except errors.SllmError as error:
                log.warning("control.pin_failed", pin=pin.place.hold_id, error=str(error))
            await self._clock.sleep(_RETRY_SECONDS)
        return None

    async def _drop_orphan(self, pin: Pin) -> None:
        """Drops a pin of which there is no deployment; its node may have the hold."""
        async with self._changing:
            if self._pins.get(pin.place) is not pin:
                return
            await self._delete([pin], UNASKED, Done.DONE)
        await self._release(pin.place)

    # --- a pin goes ---------------------------------------------------------------------------

    def _found(self, deployment: str, tier: Tier | None, node_id: str) -> list[Pin]:
        self._state.deployment(deployment)
        found = [
            pin
            for place, pin in sorted(self._pins.items(), key=lambda item: item[0].hold_id)
            if place.deployment == deployment
            and tier in (None, place.tier)
            and node_id in ("", place.node_id)
        ]
        if not found:
            node = node_id or "any node"
            where = f"in {tier.name} of {node}" if tier else f"on {node}"
            raise errors.PinNotFound(
                f"{deployment} is not pinned {where}; ListPins tells what is pinned where"
            )
        return found

    def _count(self, pin: Pin) -> None:
        """Has a pin count as its tenant's for as long as it lasts."""
        self._state.pinned.add(pin.place)
        if (left := pin.remaining(time.time())) is not None:
            asyncio.get_running_loop().call_later(left, self._count_no_more, pin)

    def _count_no_more(self, pin: Pin) -> None:
        if self._pins.get(pin.place) is pin:
            self._state.pinned.discard(pin.place)

    async def _drop_expired(self) -> None:
        now = time.time()
        if over := [pin for pin in self._pins.values() if pin.is_over(now)]:
            await self._delete(over, UNASKED, Done.DONE)

    async def _delete(self, gone: Sequence[Pin], call: Call[Answer], answer: Answer) -> None:
        places = [pin.place for pin in gone]
        await self._durable.run(self._durable.store.delete_pins, places, call, answer, time.time())
        for place in places:
            self._forget(place)

    def _forget(self, place: Place) -> None:
        self._pins.pop(place, None)
        self._state.pinned.discard(place)

    def _release_later(self, place: Place) -> asyncio.Task[None]:
        return self._tasks.spawn(self._release(place), name=f"unpin {place.hold_id}")

    async def _release(self, place: Place) -> None:
        await self._release_hold(place.node_id, place.hold_id)

    async def _release_hold(self, node_id: str, hold_id: str) -> None:
        """Has a node release a hold. A node that cannot be told now is told when it comes back."""
        node = self._nodes.by_id.get(node_id)
        if node is None:
            return
        try:
            await node.release_hold(hold_id)
        except errors.SllmError as error:
            log.warning("control.unpin_failed", node=node_id, hold=hold_id, error=str(error))


def _is_on(view: NodeView, place: Place) -> bool:
    return place.node_id == view.node_id


def _held(view: NodeView) -> set[str]:
    """Ids of all holds on a node."""
    return {hold.hold_id for copy in view.copies.values() for hold in copy.holds}
