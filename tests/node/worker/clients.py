"""The agent's side of a worker, as far as tests need it: raw calls over the real socket."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import grpc
from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1 import types_pb2
from serverlessllm.v1 import worker_service_pb2 as pb
from serverlessllm.v1.worker_service_pb2_grpc import WorkerServiceStub

from sllm import rpc
from sllm.checkpoint.format.form import WeightForm
from sllm.node.device.interface import InPool
from sllm.node.instances.forked import ForkedWorker
from sllm.node.instances.worker_messages import attach_request, form_message
from sllm.node.instances.zygote_client import WorkerSpec, Zygote
from tests.node.worker.staging import Staged
from tests.support import sent

TIMEOUT = 60.0
KV_BYTES = 8 << 20
GREEDY = types_pb2.SamplingParams(temperature=0)
_numbers = count()


@dataclass
class Followed:
    """What has come of a request so far."""

    skipped: int = 0
    """Tokens of the generation that it goes on from."""
    accepted: pb.Accepted | None = None
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[types_pb2.TokenLogprob] = field(default_factory=list)
    prompt: list[inference_pb.PromptLogprob] = field(default_factory=list)
    completed: pb.Completed | None = None
    failure: pb.Failure | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more comes."""
        return bool(self.completed or self.failure)

    def take(self, output: pb.RequestOutput) -> None:
        """Takes an output; tokens must go on where they were left."""
        assert not self.ended, f"{output} after the end"
        match output.WhichOneof("output"):
            case "accepted":
                self.accepted = output.accepted
            case "prompt_logprobs":
                assert not self.tokens, "they come before the first token"
                assert output.prompt_logprobs.first_index == len(self.prompt)
                self.prompt += output.prompt_logprobs.tokens
            case "tokens":
                self._grow(output.tokens)
            case "completed":
                self._grow(output.completed.tokens)
                self.completed = output.completed
            case "failure":
                self.failure = output.failure

    def _grow(self, tokens: inference_pb.Tokens) -> None:
        assert tokens.first_index == self.skipped + len(self.tokens)
        self.tokens += tokens.token_ids
        self.text += tokens.text
        self.logprobs += tokens.logprobs


class WorkerClient:
    """Talks to one worker."""

    def __init__(self, forked: ForkedWorker, socket: Path) -> None:
        self.forked = forked
        self.pid = forked.pid
        self._channel = grpc.aio.insecure_channel(f"unix:{socket}")
        self._stub = WorkerServiceStub(self._channel)
        self._commands: asyncio.Queue[pb.RunRequest] = asyncio.Queue()
        self._requests: defaultdict[str, Followed] = defaultdict(Followed)
        self._changed = asyncio.Event()
        self.reader: asyncio.Task[None] | None = None
        self.first_use: pb.FirstUse | None = None
        """As it was told."""

    async def prepare(self, directory: Path, **engine: Any) -> pb.PrepareResponse:
        """Calls Prepare."""
        config = types_pb2.EngineConfig(**engine)
        request = pb.PrepareRequest(checkpoint_dir=str(directory), engine=config)
        with rpc.typed_errors():
            return await self._stub.Prepare(request, timeout=TIMEOUT)

    async def attach(
        self,
        staged: Staged,
        kv_bytes: int = KV_BYTES,
        awaited: Sequence[int] = (),
        *,
        more_kv_bytes: int = 0,
        ready: bool = False,
        tell_first_use: bool = False,
    ) -> pb.AttachResponse:
        """Calls Attach; `ready`: the weights were made ready, and are with the small files."""
        place = InPool(staged.chunks, staged.chunk_bytes)
        made = staged.directory if ready else staged.ready_made
        request = attach_request(
            staged.manifest,
            place,
            kv_bytes,
            made,
            awaited,
            more_kv_bytes=more_kv_bytes,
            tell_first_use=tell_first_use,
        )
        with rpc.typed_errors():
            return await self._stub.Attach(request, timeout=TIMEOUT)

    async def bring_up(self, staged: Staged, **engine: Any) -> pb.AttachResponse:
        """Prepares, attaches and opens Run."""
        await self.prepare(staged.directory, **engine)
        return await self.attach_and_run(staged)

    async def attach_and_run(
        self,
        staged: Staged,
        awaited: Sequence[int] = (),
        *,
        ready: bool = False,
        tell_first_use: bool = False,
    ) -> pb.AttachResponse:
        """Attaches what has prepared, and opens Run."""
        response = await self.attach(
            staged, KV_BYTES, awaited, ready=ready, tell_first_use=tell_first_use
        )
        self.reader = asyncio.create_task(self._read())
        return response

    async def make_ready(self, staged: Staged, directory: Path, form: WeightForm) -> None:
        """Calls MakeReady."""
        weights = attach_request(staged.manifest, InPool(staged.chunks, staged.chunk_bytes), 0)
        request = pb.MakeReadyRequest(
            weights=weights, directory=str(directory), form=form_message(form)
        )
        with rpc.typed_errors():
            await self._stub.MakeReady(request, timeout=TIMEOUT)

    async def status(self) -> pb.GetStatusResponse:
        """Calls GetStatus."""
        with rpc.typed_errors():
            return await self._stub.GetStatus(pb.GetStatusRequest(), timeout=TIMEOUT)

    async def resize_cache(self, share_bytes: int) -> pb.ResizeCacheResponse:
        """Calls ResizeCache."""
        request = pb.ResizeCacheRequest(share_bytes=share_bytes)
        with rpc.typed_errors():
            return await self._stub.ResizeCache(request, timeout=TIMEOUT)

    def submit(self, request_id: str, **fields: Any) -> Followed:
        """Sends a request; greedy unless told otherwise."""
        fields = {"sampling": GREEDY, **fields}
        request = inference_pb.GenerateRequest(request_id=request_id, **fields)
        self._commands.put_nowait(pb.RunRequest(submit=request))
        self._requests[request_id] = Followed(len(request.continuation.token_ids))
        return self._requests[request_id]

    def arrived(self, *chunks: int) -> None:
        """Tells of chunks that were awaited."""
        arrived = pb.ArrivedChunks(chunks=chunks)
        self._commands.put_nowait(pb.RunRequest(arrived=arrived))

    def cancel(self, request_id: str) -> None:
        """Cancels a request."""
        self._commands.put_nowait(pb.RunRequest(cancel_request_id=request_id))

    async def generate(self, request_id: str, **fields: Any) -> Followed:
        """Sends a request and waits for its end."""
        followed = self.submit(request_id, **fields)
        await self.until(lambda: followed.ended)
        return followed

    async def until(self, check: Any) -> None:
        """Returns once `check` holds after some response."""
        async with asyncio.timeout(TIMEOUT):
            while not check():
                self._changed.clear()
                await self._changed.wait()

    async def close(self) -> None:
        """Closes the connection, and with it Run."""
        if self.reader:
            self.reader.cancel()
            await asyncio.wait([self.reader])
        await self._channel.close(grace=None)

    async def _read(self) -> None:
        async with sent(self._stub.Run(), self._next_commands()) as call:
            async for response in call:
                for output in response.outputs:
                    self._requests[output.request_id].take(output)
                if response.HasField("first_use"):
                    assert self.first_use is None, "it is told once"
                    self.first_use = response.first_use
                self._changed.set()

    async def _next_commands(self) -> AsyncIterator[pb.RunRequest]:
        while True:
            yield await self._commands.get()


async def fork(zygote: Zygote, socket: Path, *, ranks: int = 1, **environment: str) -> WorkerClient:
    """Forks a worker of so many processes, with these variables, and connects to it."""
    spec = WorkerSpec(socket.stem, socket, environment, ranks)
    return WorkerClient(await zygote.fork(spec), socket)


async def is_idle(worker: WorkerClient) -> bool:
    """Whether nothing runs or waits in a worker."""
    counters = (await worker.status()).counters
    return counters.running_requests == counters.waiting_requests == 0


def mapped_kilobytes(pid: int, address: int) -> tuple[int, int, int]:
    """Rss, Pss and dirty kilobytes of a process's own of the mapping at an address."""
    lines = iter(Path(f"/proc/{pid}/smaps").read_text().splitlines())
    sizes: dict[str, int] = {}
    for line in lines:
        if line.startswith(f"{address:x}-"):
            break
    for line in lines:
        name, _, value = line.partition(":")
        if not value.endswith("kB"):
            break
        sizes[name] = int(value.split()[0])
    return sizes["Rss"], sizes["Pss"], sizes["Private_Dirty"]


def rid() -> str:
    """A request id that was never used."""
    return f"r{next(_numbers)}"


def warm(seed: int = 1) -> types_pb2.SamplingParams:
    """Sampling that draws, repeatably."""
    return types_pb2.SamplingParams(temperature=1.5, seed=seed)


def so_far(token_ids: Sequence[int]) -> inference_pb.Continuation:
    """A generation that goes on after these tokens."""
    return inference_pb.Continuation(token_ids=token_ids)


def inference_ids(ids: object) -> types_pb2.TokenIds:
    """A prompt of these tokens."""
    return types_pb2.TokenIds(ids=ids)  # type: ignore[arg-type]  # any iterable will do
