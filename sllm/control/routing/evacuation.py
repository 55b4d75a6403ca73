"""Migrations that the control plane wants itself: away from drained nodes, and out of the way."""

import asyncio
from collections.abc import Sequence
from typing import Final

import structlog

from sllm import errors
from sllm.clock import Clock
from sllm.control import metrics
from sllm.control.cluster.instances import Instance
from sllm.control.orchestration.placer import Placer
from sllm.control.placement.decisions import Move
from sllm.control.routing.migrator import Migrator
from sllm.control.state.state import State
from sllm.control.tasks import Tasks
from sllm.control.types.migrations import MigrationAsk, MigrationReason

log = structlog.get_logger()

_GONE_SECONDS: Final = 30.0
"""Time that an instance without requests has to end."""
_LOOK_SECONDS: Final = 0.02


class Evacuation:
    """An `Evacuator`. An instance is moved once at a time."""

    def __init__(self, state: State, migrator: Migrator, placer: Placer, clock: Clock) -> None:
        self._state = state
        self._migrator = migrator
        self._placer = placer
        self._clock = clock
        self._tasks = Tasks()
        self._under_way: set[str] = set()

    def move_away(self, instance: Instance) -> None:
        """Has what an instance runs go on elsewhere; what cannot, goes on where it is."""
        if instance.instance_id not in self._under_way and self._migrator.is_used(instance):
            ask = MigrationAsk(instance, MigrationReason.DRAIN)
            self._tasks.spawn(self._migrate(ask), name=f"move {instance.instance_id}")

    def make_way(self, name: str, moves: Sequence[Move]) -> None:
        """Moves instances to where placement has decided, side by side."""
        self._tasks.spawn(self._make_way(name, moves), name=f"make way for {name}")

    async def close(self) -> None:
        """Ends the migrations under way; what has not moved stays."""
        await self._tasks.close()

    async def _make_way(self, name: str, moves: Sequence[Move]) -> None:
        try:
            await asyncio.gather(*(self._carry_out(move) for move in moves))
        finally:
            self._placer.way_made(name)

    async def _carry_out(self, move: Move) -> None:
        instance = self._state.fleet.instance(move.instance_id)
        if instance is None or move.instance_id in self._under_way:
            return
        began = self._clock.now()
        await self._migrate(MigrationAsk(instance, MigrationReason.PLACEMENT, None, move.to_node))
        await self._until_gone(instance)
        actual = self._clock.now() - began
        log.info(
            "control.made_way",
            instance=move.instance_id,
            node=move.to_node,
            estimate=move.seconds,
            actual=actual,
        )
        metrics.move_estimate_ratio.record(move.seconds / max(actual, 1e-3))

    async def _until_gone(self, instance: Instance) -> None:
        """Returns once the room of an instance is free, or is not going to be."""
        deadline = self._clock.now() + _GONE_SECONDS
        while self._clock.now() < deadline and not self._migrator.is_used(instance):
            if self._state.fleet.instance(instance.instance_id) is None:
                return
            await self._clock.sleep(_LOOK_SECONDS)

    async def _migrate(self, ask: MigrationAsk) -> None:
        self._under_way.add(ask.source.instance_id)
        try:
            async for _ in self._migrator.migrate(ask):
                pass
        except errors.SllmError as error:
            log.warning("control.not_moved", instance=ask.source.instance_id, error=str(error))
        finally:
            self._under_way.discard(ask.source.instance_id)
