"""What a worker has of a generation: one request, and the adapter that it is for."""

import asyncio

import structlog
from serverlessllm.v1 import inference_service_pb2 as pb

from sllm import errors
from sllm.clock import Clock
from sllm.node.generations import wire
from sllm.node.instances.adapter_use import AdapterUse
from sllm.node.instances.adapters import InstanceAdapters
from sllm.node.instances.outputs import OutputStream
from sllm.node.instances.phases import PhaseKind, Timeline
from sllm.node.instances.step_kinds import STEP_KINDS
from sllm.node.instances.worker_client import Worker

log = structlog.get_logger()


class Work:
    """A request that is submitted, at once or as soon as its adapter is there."""

    def __init__(
        self,
        request: pb.GenerateRequest,
        outputs: OutputStream,
        worker: Worker,
        adapters: InstanceAdapters | None,
        clock: Clock,
        timeline: Timeline,
        *,
        gives_way: bool,
        use: AdapterUse | None = None,
    ) -> None:
        """Submits it.

        Args:
            request: its id was never used in this worker.
            outputs: gets what comes of it, and why it cannot be submitted.
            worker: of the instance.
            adapters: the instance's. None: it takes none.
            clock: the timeline's.
            timeline: gets the load of its adapter, if it has to wait for that.
            gives_way: whether the engine computes all others before it.
            use: of its adapter, if that is held for it already.

        Raises:
            errors.WorkerDied: The worker has ended.
        """
        self._request = request
        self._outputs = outputs
        self._worker = worker
        self._clock = clock
        self._timeline = timeline
        self._gives_way = gives_way
        self.submitted_at = clock.now()
        """When the worker was given it, in the clock's seconds."""
        self._use: AdapterUse | None = None
        self._beginning: asyncio.Task[None] | None = None
        if use:
            self._submit_with(use)
        elif request.HasField("adapter"):
            worker.expect(request.request_id, outputs)
            self._beginning = asyncio.create_task(self._begin(adapters), name="adapted request")
        else:
            self._submit()

    @property
    def request_id(self) -> str:
        """As the worker knows it."""
        return self._request.request_id

    def release(self) -> None:
        """Ends it within a step, unless it has ended, and gives its adapter back."""
        self._worker.release(self._request.request_id)
        self.let_go()

    def let_go(self) -> None:
        """Gives its adapter back: the worker has put out its last."""
        if self._beginning:
            self._beginning.cancel()
        if self._use:
            self._use.release()

    def _give_way(self) -> None:
        """Ends it for others that need the room of its adapter: it may be begun again."""
        self._outputs.fail(errors.Cancelled("its adapter gives way to those that are waited for"))
        self.release()

    async def _begin(self, adapters: InstanceAdapters | None) -> None:
        try:
            if adapters is None:
                raise errors.NotServed("the instance takes no adapters (max_adapters)")
            give_way = self._give_way if self._request.background else None
            spec = wire.adapter_spec(self._request.adapter)
            use = await adapters.take(spec, give_way)
            self._tell(use)
            self._submit_with(use)
        except errors.SllmError as error:
            self._fail(error)
        except Exception as error:
            log.exception("node.adapter_failed", request=self._request.request_id)
            self._fail(errors.Internal(f"the adapter could not be loaded: {error!r}"))

    def _fail(self, error: errors.SllmError) -> None:
        self._beginning = None
        self._worker.release(self._request.request_id)
        self._outputs.fail(error)

    def _tell(self, use: AdapterUse) -> None:
        """Tells what was waited for."""
        if use.steps is None:
            return
        for step in use.steps:
            self._timeline.add(STEP_KINDS[step.phase], step.start, step.duration, step.size_bytes)
        seconds = self._clock.now() - self.submitted_at
        self._timeline.add(PhaseKind.ATTACH, self.submitted_at, seconds)

    def _submit_with(self, use: AdapterUse) -> None:
        self._use = use
        self._request.adapter.identity = use.adapter_id
        self._submit()

    def _submit(self) -> None:
        self.submitted_at = self._clock.now()
        self._worker.submit(self._request, self._outputs, gives_way=self._gives_way)
