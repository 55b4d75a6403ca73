"""All generations of this node, by request, and for how long each goes on without a reader."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from serverlessllm.v1 import inference_service_pb2 as pb

from sllm import bounds, errors
from sllm.clock import Clock
from sllm.node.generations import wire
from sllm.node.generations.generation import Generation
from sllm.node.instances.adapter_use import AdapterUse
from sllm.node.instances.instances import Instances
from sllm.node.instances.worker_client import Worker
from sllm.prompt_size import check_size

_LOOK_SECONDS = 0.05
UNREAD_SECONDS = 10.0
"""How long a generation that has come from another node waits for its reader."""


class Generations:
    """Requests under way on this node. Belongs to the event loop."""

    def __init__(
        self, instances: Instances, leave: Callable[[], None], node_id: str, clock: Clock
    ) -> None:
        """None is under way. `leave`: see `Agent.leave`."""
        self._instances = instances
        self._leave = leave
        self._node_id = node_id
        self._clock = clock
        self._by_id: dict[str, Generation] = {}
        self._waits: dict[Generation, asyncio.Task[None]] = {}
        """Of generations without a reader, each until its time is up."""

    async def read(self, request: pb.GenerateRequest) -> AsyncGenerator[pb.GenerateResponse]:
        """Begins a request, or reads on in one that is under way; a reader that leaves ends it.

        Raises:
            errors.SllmError: Why it has ended, or was not begun.
        """
        generation = self._reading(request)
        reader = object()
        try:
            async with aclosing(generation.events(reader)) as events:
                async for event in events:
                    yield event
        finally:
            if generation.reader is reader:
                generation.reader = None
                self._left(generation)

    def adopt(
        self, request: pb.GenerateRequest, worker: Worker, use: AdapterUse | None = None
    ) -> Generation:
        """Goes on with a request that has come from another node, and waits for its reader.

        `use`: of its adapter, if that is held for it already.

        Raises:
            errors.WorkerDied: The worker has ended.
        """
        self._replace(request.request_id)
        instance = self._instances.find(request.instance_id)
        generation = Generation(
            request,
            worker,
            self._node_id,
            self._clock,
            adapters=instance.adapters,
            use=use,
            arriving=instance.arriving,
            keep=True,
        )
        generation.identity = wire.served_identity(instance.identity, request)
        self._by_id[request.request_id] = generation
        self._wait(generation, UNREAD_SECONDS)
        return generation

    def of_instance(self, instance_id: str) -> list[Generation]:
        """Those under way on an instance."""
        mine = (one for one in self._by_id.values() if one.request.instance_id == instance_id)
        return [one for one in mine if not one.over]

    async def hand_over(self, timeout: float) -> None:
        """Has all go on elsewhere; returns once nobody reads any here, or after `timeout` s."""
        deadline = self._clock.now() + timeout
        if any(one.reader for one in self._by_id.values()):
            self._leave()
        while self._clock.now() < deadline and any(one.reader for one in self._by_id.values()):
            await self._clock.sleep(_LOOK_SECONDS)

    def chosen(self, instance_id: str, request_ids: Sequence[str]) -> list[Generation]:
        """Those under way on an instance that are named, or all if none is.

        Raises:
            errors.RequestNotFound: One of them is not under way there.
        """
        there = self.of_instance(instance_id)
        if not request_ids:
            return there
        by_id = {one.request_id: one for one in there}
        if unknown := [one for one in request_ids if one not in by_id]:
            raise errors.RequestNotFound(
                f"no request {unknown[0]!r} is under way on {instance_id}; it may have finished"
            )
        return [by_id[one] for one in request_ids]

    def cancel(self, request_id: str, attempt: str | None = None) -> None:
        """Ends a request from outside its stream.

        `attempt`: only if that is the one that reads it, or has read it last. None: whichever is.

        Raises:
            errors.RequestNotFound: No such request is under way here.
        """
        generation = self._by_id.get(request_id)
        if generation is None or attempt not in (None, generation.request.attempt):
            of = f" of attempt {attempt!r}" if attempt is not None else ""
            raise errors.RequestNotFound(f"no request {request_id}{of} is under way here")
        generation.cancel()
        if generation.reader is None:
            self.drop(generation)

    def drop(self, generation: Generation) -> None:
        """Ends a generation, and forgets it."""
        generation.close()
        if self._by_id.get(generation.request_id) is generation:
            del self._by_id[generation.request_id]
        self._wait_no_more(generation)

    def _reading(self, request: pb.GenerateRequest) -> Generation:
        """The generation that a call of Generate is about."""
        if not bounds.name(request.request_id, "request_id"):
            raise errors.InvalidArgument("request_id is empty; a request has an id of its own")
        if request.choices or (request.HasField("n") and request.n != 1):
            raise errors.InvalidArgument("a node serves one sample: ask a control plane for n")
        known = self._by_id.get(request.request_id)
        if known and known.outputs.failed:
            known = None  # as when its worker was lost: begun again, it may be served
        if known and not request.HasField("continuation"):
            raise errors.RequestIdInUse(f"request {request.request_id} is already under way")
        if known and _goes_on(known, request):
            self._wait_no_more(known)
            known.request.attempt = request.attempt  # the reader's
            return known
        instance = self._instances.find(request.instance_id)
        worker = instance.ready_worker()
        self._check_size(request)
        identity = wire.served_identity(instance.identity, request)
        instance.check_identity(request.continuation.identity, identity)
        keep = _linger(request) > 0
        self._replace(request.request_id)
        generation = Generation(
            request,
            worker,
            self._node_id,
            self._clock,
            adapters=instance.adapters,
            arriving=instance.arriving,
            keep=keep,
        )
        generation.identity = identity
        self._by_id[request.request_id] = generation
        return generation

    def _check_size(self, request: pb.GenerateRequest) -> None:
        running = self._instances.find(request.instance_id).running
        if running:
            check_size(request.ByteSize(), running.context_tokens)

    def _replace(self, request_id: str) -> None:
        """Ends what is left of a request that begins anew."""
        if former := self._by_id.get(request_id):
            former.cancel()
            self.drop(former)

    def _left(self, generation: Generation) -> None:
        """A reader has gone: one that has read to the end, or one that may come again."""
        linger = _linger(generation.request)
        over = generation.given_out or generation.closed or generation.outputs.failed
        if linger and not over:
            self._wait(generation, linger)
        else:
            self.drop(generation)

    def _wait(self, generation: Generation, seconds: float) -> None:
        self._waits[generation] = asyncio.create_task(self._expire(generation, seconds))
        self._tell(generation.request.instance_id)

    def _wait_no_more(self, generation: Generation) -> None:
        if wait := self._waits.pop(generation, None):
            wait.cancel()
            self._tell(generation.request.instance_id)

    async def _expire(self, generation: Generation, seconds: float) -> None:
        await self._clock.sleep(seconds)
        self.drop(generation)

    def _tell(self, instance_id: str) -> None:
        unread = [one for one in self._waits if one.request.instance_id == instance_id]
        self._instances.set_unread(instance_id, frozenset(one.request_id for one in unread))


def _goes_on(generation: Generation, request: pb.GenerateRequest) -> bool:
    """Whether `request` is to be answered with what `generation` puts out."""
    same = generation.request.instance_id == request.instance_id
    count = len(request.continuation.token_ids)
    return same and not generation.closed and generation.outputs.rewind(count)


def _linger(request: pb.GenerateRequest) -> float:
    """Seconds for which a request goes on without a reader.

    Raises:
        errors.InvalidArgument: They are negative, or too many.
    """
    return bounds.duration(request.linger, "linger", most=bounds.MAX_LINGER)
