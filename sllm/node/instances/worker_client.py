"""The agent's end of a worker process: its start, its calls, its requests, its death."""

import asyncio
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import grpc
import structlog
from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1 import worker_service_pb2 as pb
from serverlessllm.v1.embedding_service_pb2_grpc import EmbeddingServiceStub
from serverlessllm.v1.model_service_pb2_grpc import ModelServiceStub
from serverlessllm.v1.worker_service_pb2_grpc import WorkerServiceStub

from sllm import errors, rpc, sending
from sllm.checkpoint.format.form import WeightForm
from sllm.checkpoint.format.manifest import Manifest
from sllm.durations import to_seconds
from sllm.node.device.interface import Place
from sllm.node.device.kv_shares import CacheUse
from sllm.node.instances.forked import Exit, ForkedWorker
from sllm.node.instances.outputs import OutputStream
from sllm.node.instances.pidfd import ProcessHandle
from sllm.node.instances.spec import EngineSpec
from sllm.node.instances.under_way import UnderWay
from sllm.node.instances.worker_messages import (
    Attached,
    Prepared,
    attach_request,
    attached,
    cache_use,
    first_use,
    form_message,
    prepare_request,
    prepared,
)
from sllm.node.tiers.first_use import FirstUse
from sllm.statuses import from_failure

log = structlog.get_logger()

Question = TypeVar("Question")
Reply = TypeVar("Reply")

START_TIMEOUT = 30.0
PREPARE_TIMEOUT = 60.0
ATTACH_TIMEOUT = 300.0
MAKE_READY_TIMEOUT = 3600.0
"""Nobody waits for it, and it gives way to all others."""
ADAPTER_TIMEOUT = 60.0
ASK_TIMEOUT = 30.0
RESIZE_TIMEOUT = 5.0
STOP_TIMEOUT = 5.0
"""Seconds that a worker has to end by itself before it is killed."""
KILL_TIMEOUT = 15.0
"""Seconds that the kernel has to end one that was killed: it gives a device's memory back first."""
LAST_WORDS_SECONDS = 2.0
"""What a worker has put out before its end is read for as long."""

# The socket appears some 30 ms after the fork; gRPC should look again soon.
_CHANNEL_OPTIONS = (
    *rpc.PROCESS_OPTIONS,
    ("grpc.initial_reconnect_backoff_ms", 10),
    ("grpc.min_reconnect_backoff_ms", 10),
    ("grpc.max_reconnect_backoff_ms", 50),
)


class Worker:
    """One worker process, from its fork to its end."""

    def __init__(self, forked: ForkedWorker, socket: Path) -> None:
        self.pid = forked.pid
        self.process = forked.process
        """As the kernel knows it: it may go on for a moment after it was told to be `gone`."""
        self.ranks: tuple[ProcessHandle, ...] = ()
        """The processes that run its model with it, which the kernel ends with it."""
        self.gone: asyncio.Future[errors.WorkerDied] = asyncio.get_running_loop().create_future()
        """Resolved with the reason once the process has ended."""
        self.orphaned = False
        """Once it is `gone`: whether that is the end of its zygote, and nothing of its own."""
        self.faulted = False
        """Once it is `gone`: whether it has touched memory that is not there."""
        self.counters = pb.WorkerCounters()
        self._socket = socket
        self.channel = rpc.channel(rpc.unix_address(socket), _CHANNEL_OPTIONS)
        self._stub = WorkerServiceStub(self.channel)
        self.models = ModelServiceStub(self.channel)
        """What its model can be asked with `ask`, once it has prepared."""
        self.encoders = EmbeddingServiceStub(self.channel)
        """What can be had of its model with `encode`, if that embeds or scores."""
        self._under_way = UnderWay()
        self._commands: asyncio.Queue[pb.RunRequest] = asyncio.Queue()
        self._reader: asyncio.Task[None] | None = None
        self._on_first_use: Callable[[FirstUse], None] | None = None
        self._on_corrupt: Callable[[errors.SllmError], None] = lambda _: None
        self._stopping = False
        self._verdict = ""
        """Why it was killed, if it was."""
        self._ending = asyncio.create_task(self._end(forked.exited), name=f"worker-{self.pid}-end")

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of all that run its model, its own first."""
        return (self.pid, *(one.pid for one in self.ranks))

    @property
    def processes(self) -> tuple[ProcessHandle, ...]:
        """All that may read its weights."""
        return (self.process, *self.ranks)

    @property
    def running(self) -> int:
        """Requests that were submitted, or are about to be, and have not ended."""
        return len(self._under_way)

    @property
    def waiting(self) -> int:
        """Of these, those that wait for room in the cache, as of its last step."""
        return min(self.running, self.counters.waiting_requests)

    async def wait_until_serving(self) -> None:
        """Returns once the worker answers on its socket."""
        await self._call(self._stub.GetStatus(pb.GetStatusRequest(), **_options(START_TIMEOUT)))

    async def prepare(self, checkpoint_dir: Path, engine: EngineSpec) -> Prepared:
        """Has the worker load what it can before the weights are there; it says what it found."""
        request = prepare_request(checkpoint_dir, engine)
        reply = await self._call(self._stub.Prepare(request, **_options(PREPARE_TIMEOUT)))
        self.ranks = _handles(reply.rank_pids)
        return prepared(reply)

    async def attach(
        self,
        manifest: Manifest,
        place: Place,
        kv_bytes: int,
        ready_made: Path | None = None,
        awaited: Sequence[int] = (),
        borrowed: Sequence[range] = (),
        more_kv_bytes: int = 0,
        on_first_use: Callable[[FirstUse], None] | None = None,
        on_corrupt: Callable[[errors.SllmError], None] = lambda _: None,
    ) -> Attached:
        """Gives the worker its weights; once this returns it takes requests.

        Args:
            manifest: what they consist of.
            place: where they are.
            kv_bytes: memory that the KV cache may take.
            ready_made: directory of their small files, if they were made ready for the engine.
            awaited: chunks that it does not read before `arrived` tells of them, counted over all
                partitions.
            borrowed: layers that wait for some of these, and may be computed elsewhere meanwhile.
            more_kv_bytes: what that may come to take beside; see `resize_cache`.
            on_first_use: told once in which order the model uses its tensors, when it first has.
            on_corrupt: told if weights that it reads by itself are not what was written.
        """
        tell = on_first_use is not None
        request = attach_request(
            manifest,
            place,
            kv_bytes,
            ready_made,
            awaited,
            borrowed,
            more_kv_bytes,
            tell_first_use=tell,
        )
        self._on_first_use, self._on_corrupt = on_first_use, on_corrupt
        reply = await self._call(self._stub.Attach(request, **_options(ATTACH_TIMEOUT)))
        self._reader = asyncio.create_task(self._read(), name=f"worker-{self.pid}-reader")
        return attached(reply)

    async def resize_cache(self, share_bytes: int) -> CacheUse:
        """Says what its KV cache may take from now on, if `Attached.resizes_cache`.

        What it has above that it gives up as requests end, before others begin.
        """
        request = pb.ResizeCacheRequest(share_bytes=share_bytes)
        return cache_use(
            await self._call(self._stub.ResizeCache(request, **_options(RESIZE_TIMEOUT)))
        )

    def arrived(self, chunks: Sequence[int]) -> None:
        """Lets the model read chunks that `attach` has had it wait for."""
        if not self.gone.done():
            message = pb.ArrivedChunks(chunks=chunks)
            self._commands.put_nowait(pb.RunRequest(arrived=message))

    def borrow_layers(self) -> Any:
        """A call that has layers of the model computed elsewhere; see worker_service.proto."""
        return self._stub.BorrowLayers()

    def compute_layers(self) -> Any:
        """A call that computes layers of the model for another node's worker."""
        return self._stub.ComputeLayers()

    async def load_adapter(
        self, adapter_id: str, identity: str, directory: Path, manifest: Manifest, place: Place
    ) -> None:
        """Has the worker use an adapter for requests that name it.

        Args:
            adapter_id: never used here before.
            identity: of what it is.
            directory: of its small files.
            manifest: what it consists of.
            place: where it is in the pool.
        """
        request = pb.LoadAdapterRequest(
            adapter_id=adapter_id,
            checkpoint_dir=str(directory),
            weights=attach_request(manifest, place, kv_bytes=0),
            identity=identity,
        )
        await self._call(self._stub.LoadAdapter(request, **_options(ADAPTER_TIMEOUT)))

    async def unload_adapter(self, adapter_id: str) -> None:
        """Returns once the worker does not read an adapter's memory any more."""
        request = pb.UnloadAdapterRequest(adapter_id=adapter_id)
        await self._call(self._stub.UnloadAdapter(request, **_options(ADAPTER_TIMEOUT)))

    async def make_ready(
        self, manifest: Manifest, place: Place, directory: Path, form: WeightForm
    ) -> float:
        """Has the worker write weights as its engine reads them; it is of no other use then.

        Args:
            manifest: what they consist of, as published.
            place: where they are.
            directory: of the checkpoint that is made; not there yet.
            form: what it is for.

        Returns:
            Seconds that it took.
        """
        request = pb.MakeReadyRequest(
            weights=attach_request(manifest, place, kv_bytes=0),
            directory=str(directory),
            form=form_message(form),
        )
        reply = await self._call(self._stub.MakeReady(request, **_options(MAKE_READY_TIMEOUT)))
        return to_seconds(reply.duration)

    def expect(self, request_id: str, stream: OutputStream) -> None:
        """Counts a request that is to be submitted, or released: it is waited for, and may end.

        Raises:
            errors.WorkerDied: The worker has ended.
        """
        if self.gone.done():
            raise self.gone.result()
        self._under_way.expect(request_id, stream)

    def submit(
        self,
        request: inference_pb.GenerateRequest,
        stream: OutputStream,
        *,
        gives_way: bool = False,
    ) -> None:
        """Hands a request to the engine; what comes of it comes through `stream`.

        Its id must never have been used here: an output that comes late is nobody else's.
        `gives_way`: others are computed before it.

        Raises:
            errors.WorkerDied: The worker has ended.
        """
        if self.gone.done():
            raise self.gone.result()
        self._under_way.submit(request.request_id, stream)
        self._commands.put_nowait(pb.RunRequest(submit=request, gives_way=gives_way))

    def release(self, request_id: str) -> None:
        """Forgets a request; one that has not ended is cancelled in the engine."""
        if self._under_way.forget(request_id) and not self.gone.done():
            self._commands.put_nowait(pb.RunRequest(cancel_request_id=request_id))

    async def drain(self, grace: float) -> None:
        """Waits up to `grace` seconds for the requests to end, then fails those that are left."""
        await self._under_way.wait(grace)
        error = errors.ShuttingDown("the instance was stopped before the request was finished")
        for request_id in self._under_way.fail(error):
            self.release(request_id)

    async def ask(
        self, method: grpc.aio.UnaryUnaryMultiCallable[Question, Reply], question: Question
    ) -> Reply:
        """Asks the worker's model what takes no weights.

        Args:
            method: of `models`.
            question: what is asked.

        Raises:
            errors.SllmError: What kept it from answering.
        """
        return await self._call(method(question, **_options(ASK_TIMEOUT)))

    async def encode(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Question, Reply],
        question: Question,
        timeout: float | None,
    ) -> Reply:
        """Has the worker's model make vectors or scores: one of the requests that are `running`.

        Args:
            method: of `encoders`.
            question: what is asked.
            timeout: seconds. None: as long as it takes.

        Raises:
            errors.SllmError: What kept it from answering.
        """
        if self.gone.done():
            raise self.gone.result()
        with self._under_way.encoding() as given_up:
            answer = asyncio.ensure_future(self._call(method(question, **_options(timeout))))
            try:
                either: list[asyncio.Future[Any]] = [answer, given_up]
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                if not answer.done():
                    raise given_up.result()
                return await answer
            finally:
                answer.cancel()
                await asyncio.gather(answer, return_exceptions=True)

    async def steps(self, timeout: float) -> int | None:
        """Steps that its engine has begun. None: no answer within `timeout` seconds."""
        try:
            status = await self._call(
                self._stub.GetStatus(pb.GetStatusRequest(), **_options(timeout))
            )
        except errors.SllmError:
            return None
        return status.counters.steps

    def kill(self, verdict: str) -> None:
        """Ends the process at once; `verdict` is what those who had requests are told of it."""
        if not self.gone.done():
            self._verdict = f"{verdict} and was killed"
            self.process.send(signal.SIGKILL)

    async def stop(self) -> None:
        """Ends the process, and returns when it is gone, or cannot be ended: see `process`."""
        self._stopping = True
        await self.channel.close(grace=None)
        for how, timeout in ((signal.SIGTERM, STOP_TIMEOUT), (signal.SIGKILL, KILL_TIMEOUT)):
            self.process.send(how)
            await asyncio.wait([self.process.ended], timeout=timeout)
        if self.process.ended.done():
            await asyncio.wait([self.gone], timeout=STOP_TIMEOUT)  # the zygote tells how
        if self.ranks:
            await asyncio.wait([one.ended for one in self.ranks], timeout=KILL_TIMEOUT)
        if self._reader:
            await asyncio.wait([self._reader], timeout=STOP_TIMEOUT)
        self._socket.unlink(missing_ok=True)

    async def _call(self, call: grpc.aio.UnaryUnaryCall[Any, Reply]) -> Reply:
        """The answer of a call, or the reason why the worker is gone."""
        answer = asyncio.ensure_future(_typed(call))
        try:
            either: list[asyncio.Future[Any]] = [answer, self.gone]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise self.gone.result()
            if answer.cancelled():  # its channel was closed
                raise errors.WorkerDied(f"worker process {self.pid} was stopped meanwhile")
            return await answer
        except errors.Unreachable as error:
            # Its end closes the connection, and is told by another way.
            await asyncio.wait([self.gone], timeout=LAST_WORDS_SECONDS)
            if self.gone.done():
                raise self.gone.result() from error
            raise
        finally:
            answer.cancel()
            await asyncio.gather(answer, return_exceptions=True)

    async def _read(self) -> None:
        """Deals the engine's steps out to the requests until the stream ends."""
        try:
            call = self._stub.Run()
            async with sending.from_queue(call, self._commands):
                async for step in call:
                    self.counters = step.counters
                    for output in step.outputs:
                        self._under_way.deal(output)
                    if step.HasField("first_use") and self._on_first_use:
                        self._on_first_use(first_use(step.first_use))
                    if step.HasField("corrupt"):
                        self._on_corrupt(from_failure(step.corrupt))
        except (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.CancelledError) as error:
            # The second: it was stopped before this began.
            log.debug("worker.stream_ended", pid=self.pid, error=str(error))
            await self._end_with_stream()
        except Exception:
            log.exception("worker.not_understood", pid=self.pid)
            self.kill("put out what the agent could not take")

    async def _end_with_stream(self) -> None:
        """Ends a process whose stream is gone: nothing could be asked of it any more."""
        await asyncio.wait([self.process.ended], timeout=LAST_WORDS_SECONDS)
        if not self._stopping and not self.process.ended.done():
            self.kill("broke off its stream")

    async def _end(self, exited: asyncio.Future[Exit]) -> None:
        """Fails what is left, once the process has ended and its last words have been heard."""
        end = await exited
        if self._reader:
            # They come by another way than the end, and say more of it: it may overtake them.
            await asyncio.wait([self._reader], timeout=LAST_WORDS_SECONDS)
        self.orphaned, self.faulted = end.orphaned, end.is_fault
        error = errors.WorkerDied(f"worker process {self.pid} {self._verdict or end.in_words}")
        self.gone.set_result(error)
        for request_id in self._under_way.fail(error):
            self._under_way.forget(request_id)


def _handles(pids: Sequence[int]) -> tuple[ProcessHandle, ...]:
    try:
        return tuple(ProcessHandle(pid) for pid in pids)
    except OSError as error:
        raise errors.StartFailed(f"a worker's processes cannot be watched: {error}") from error


def _options(timeout: float | None) -> dict[str, Any]:
    return {"timeout": timeout, "wait_for_ready": True, "metadata": rpc.trace_metadata()}


async def _typed(call: grpc.aio.UnaryUnaryCall[Any, Reply]) -> Reply:
    with rpc.typed_errors():
        return await call
