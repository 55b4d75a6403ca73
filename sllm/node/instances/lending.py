"""Instances that compute layers for other nodes, while those read their weights."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import uuid4

import structlog

from sllm import errors
from sllm.node.instances.instance import Instance, InstanceState
from sllm.node.instances.spec import EngineSpec, InstanceSpec
from sllm.node.instances.worker_client import Worker
from sllm.node.store.tier_store import TierStore
from sllm.node.tiers.first_use import FirstUse

log = structlog.get_logger()

Begin = Callable[[InstanceSpec, range], Instance]
"""Begins an instance that reads the weights of these layers first."""


@dataclass(frozen=True, slots=True)
class LayersWish:
    """What another node asks for."""

    deployment: str
    source: str
    identity: str
    engine: EngineSpec
    kv_bytes: int
    digest: str
    layers: range
    first_use: FirstUse | None
    """Of the checkpoint's tensors, as the borrower has seen it."""


class Lending:
    """Those of a node: they serve nobody else, and give way to all else. Belongs to the loop."""

    def __init__(self, store: TierStore, begin: Begin) -> None:
        """Nothing is lent."""
        self.instances: dict[str, Instance] = {}
        """Those that take room, by their ids, which the control plane does not know."""
        self._store = store
        self._begin = begin
        self._leaving: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def worker(self, wish: LayersWish) -> AsyncIterator[Worker]:
        """A worker that computes layers, for as long as the block lasts.

        Raises:
            errors.CheckpointNotFound: The checkpoint is not on this node's disk.
            errors.NoCapacity: There is no room for it, or no more: this node has work of its own.
            errors.SllmError: Why it cannot be started.
        """
        await self._check_held(wish)
        if wish.first_use:
            await self._note(wish.digest, wish.first_use)
        instance = self._started(wish)
        try:
            async for _ in instance.follow_start():
                pass
            _check_same(instance, wish.digest)
            yield instance.ready_worker()
        except (errors.SllmError, asyncio.CancelledError) as error:
            if self._gave_way(instance):
                raise errors.NoCapacity("this node has work of its own meanwhile") from error
            raise
        finally:
            await self._end(instance)

    def give_way(self) -> None:
        """Has all of them end; their room counts as free from now on."""
        leaving = list(self.instances.values())
        self.instances.clear()
        for instance in leaving:
            log.info("instance.lending_ended", instance=instance.spec.instance_id)
            task = asyncio.create_task(instance.stop(0.0), name="a lender that gives way")
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    async def has_given_way(self) -> bool:
        """Returns once those that were told to end have; whether there were any."""
        leaving = list(self._leaving)
        await asyncio.gather(*leaving)
        return bool(leaving)

    async def close(self) -> None:
        """Ends all."""
        self.give_way()
        await self.has_given_way()

    async def _check_held(self, wish: LayersWish) -> None:
        """Nothing is imported for others."""
        if self._store.holds(wish.digest):
            about = (wish.source, wish.engine.dtype)
            found = await self._store.inspect(*about, fresh=False, identity=wish.identity)
            if found.digest is not None:
                return
        raise errors.CheckpointNotFound(f"checkpoint {wish.digest} is not on this node")

    def _gave_way(self, instance: Instance) -> bool:
        """Whether it was ended for the node's own work, before anything else ended it."""
        was_ended = isinstance(instance.error, errors.Cancelled | None)
        return was_ended and instance.spec.instance_id not in self.instances

    def _started(self, wish: LayersWish) -> Instance:
        spec = InstanceSpec(
            f"layers-{uuid4().hex[:12]}",
            wish.deployment,
            wish.source,
            wish.engine,
            wish.kv_bytes,
            wish.identity,
        )
        instance = self._begin(spec, wish.layers)
        self.instances[spec.instance_id] = instance
        return instance

    async def _end(self, instance: Instance) -> None:
        await instance.stop(0.0)
        self.instances.pop(instance.spec.instance_id, None)

    async def _note(self, digest: str, use: FirstUse) -> None:
        try:
            await self._store.first_uses.note(digest, use)
        except ValueError as error:
            raise errors.InvalidArgument(f"first_use: {error}") from error


def _check_same(instance: Instance, digest: str) -> None:
    """The same weights in another form would give almost the same numbers."""
    found = instance.running.digest if instance.running else ""
    if instance.state is InstanceState.READY and found != digest:
        raise errors.CheckpointNotFound(f"this node would compute with {found}, not {digest}")
