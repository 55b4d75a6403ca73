"""One request on this node: from what the worker puts out to the events of the protocol."""

import asyncio
import itertools
from collections.abc import AsyncGenerator, Iterator, Sequence

from opentelemetry import trace
from serverlessllm.v1 import inference_service_pb2 as pb
from serverlessllm.v1 import types_pb2 as types_pb
from serverlessllm.v1 import worker_service_pb2 as worker_pb

from sllm import errors
from sllm.chat.wire import keep_images
from sllm.clock import Clock
from sllm.durations import to_seconds
from sllm.node.generations import wire
from sllm.node.generations.work import Work
from sllm.node.instances.adapter_use import AdapterUse
from sllm.node.instances.adapters import InstanceAdapters
from sllm.node.instances.arriving import Arriving
from sllm.node.instances.outputs import OutputStream
from sllm.node.instances.phases import PhaseKind, Timeline
from sllm.node.instances.step_kinds import STEP_KINDS
from sllm.node.instances.worker_client import Worker
from sllm.statuses import from_failure

tracer = trace.get_tracer("sllm")

_numbers = itertools.count()


class Generation:
    """A request on an instance of this node. It has one reader at a time, or none for a while."""

    def __init__(
        self,
        request: pb.GenerateRequest,
        worker: Worker,
        node_id: str,
        clock: Clock,
        *,
        adapters: InstanceAdapters | None = None,
        use: AdapterUse | None = None,
        arriving: Arriving | None = None,
        keep: bool = False,
        gives_way: bool = False,
    ) -> None:
        """Submits the request.

        Args:
            request: As it is to be generated here.
            worker: Of the instance.
            node_id: This node.
            clock: For the receipt.
            adapters: Of the instance. None: it takes none.
            use: Of its adapter, if that is held for it already.
            arriving: Weights of the instance that it may have to wait for.
            keep: Whether it can be read again from where a reader has left.
            gives_way: Whether the engine computes all others before it.

        Raises:
            errors.WorkerDied: The worker has ended.
        """
        self.request = request
        self.reader: object | None = None
        """Whoever reads it now."""
        self.cutting_over = asyncio.Lock()
        """Held by the migration that stops it here, until it is known where it goes on."""
        self.closed = False
        """Whether nobody wants it any more."""
        self.identity = ""
        """Of what its instance serves."""
        self.given_out = False
        """Whether its last event has been given out."""
        self.outputs = OutputStream(request, keep=keep)
        self.outputs.on_end = self._let_go
        self._worker = worker
        self._adapters = adapters
        self._arriving = arriving
        self._node_id = node_id
        self._gives_way = gives_way
        self._timeline = Timeline(clock)
        self._clock = clock
        self._sequence = 0
        self._work: Work | None = None
        self._first_work: Work | None = None
        """What it was begun as, when it went on here after a move that came to nothing."""
        self._submit(request, use)

    @property
    def request_id(self) -> str:
        """Unique among the requests under way."""
        return self.request.request_id

    @property
    def request_id_in_worker(self) -> str:
        """What its worker knows it by now. Empty: the engine does not have it."""
        return self._work.request_id if self._work else ""

    @property
    def over(self) -> bool:
        """Whether nothing more happens to it here."""
        return self.closed or self.outputs.ended or self.outputs.moved is not None

    async def events(self, reader: object) -> AsyncGenerator[pb.GenerateResponse]:
        """Its events, the last of them `finished` or `moved`, to one reader.

        Raises:
            errors.SllmError: The worker refused the request, or gave it up.
            errors.Cancelled: Another reader has taken over.
        """
        with tracer.start_as_current_span("sllm.node.generations.generation"):
            self.reader = reader
            last = False
            while not last:
                taken = await self.outputs.take()
                if self.reader is not reader:
                    raise errors.Cancelled(f"{self.request_id} is read elsewhere")
                for event in self._translate(taken):
                    last = event.HasField("finished") or event.HasField("moved")
                    yield event
                self.given_out = last

    def cancel(self) -> None:
        """Ends it: its reader gets Cancelled, the engine stops within a step."""
        self.outputs.fail(errors.Cancelled(f"request {self.request_id} was cancelled"))
        self.close()

    def close(self) -> None:
        """Ends it without a word; the engine stops within a step."""
        self.closed = True
        self.halt()

    def halt(self) -> None:
        """Stops it in the engine, after the tokens that have come out."""
        if self._work:
            self._work.release()
            self._work = None

    def resume(self) -> None:
        """Goes on with it in the engine, after the tokens that have come out.

        Raises:
            errors.WorkerDied: The worker has ended.
        """
        if self.over or self._work:
            return
        request = self.portable()
        request.continuation.token_ids.extend(self.outputs.token_ids)
        self._submit(request)

    def portable(self) -> pb.GenerateRequest:
        """The request with its prompt as tokens and without a continuation."""
        request = pb.GenerateRequest()
        request.CopyFrom(self.request)
        request.ClearField("continuation")
        keep_images(request)
        request.token_ids.CopyFrom(types_pb.TokenIds(ids=self.outputs.prompt))
        return request

    def _submit(self, request: pb.GenerateRequest, use: AdapterUse | None = None) -> None:
        work = pb.GenerateRequest()
        work.CopyFrom(request)
        work.request_id = f"{request.request_id}/{next(_numbers)}"
        self._work = Work(
            work,
            self.outputs,
            self._worker,
            self._adapters,
            self._clock,
            self._timeline,
            gives_way=self._gives_way,
            use=use,
        )
        self._first_work = self._first_work or self._work

    def _let_go(self) -> None:
        if self._work:
            self._work.let_go()

    def _translate(
        self, outputs: Sequence[worker_pb.RequestOutput]
    ) -> Iterator[pb.GenerateResponse]:
        """The events of outputs that waited together; their tokens become one event."""
        tokens: list[pb.Tokens] = []
        completed: worker_pb.Completed | None = None
        for output in outputs:
            match output.WhichOneof("output"):
                case "accepted":
                    yield self._event(started=self._started(output.accepted))
                case "tokens":
                    tokens.append(output.tokens)
                case "completed":
                    completed = output.completed
                    tokens.append(completed.tokens)
                case "failure":
                    raise from_failure(output.failure)
                case _:
                    yield self._event(prompt_logprobs=output.prompt_logprobs)
        yield from self._token_events(tokens)
        if completed:
            yield self._event(finished=self._finished(completed))
        elif self.outputs.moved:
            yield self._event(moved=self.outputs.moved)

    def _token_events(self, parts: Sequence[pb.Tokens]) -> Iterator[pb.GenerateResponse]:
        merged = parts[0] if len(parts) == 1 else wire.merge_tokens(parts)
        if not (merged.token_ids or merged.text or merged.reasoning or merged.tool_calls):
            return
        yield self._event(tokens=merged)

    def _started(self, accepted: worker_pb.Accepted) -> pb.Started:
        known = self.request.HasField("token_ids")
        return pb.Started(
            instance_id=self.request.instance_id,
            node_id=self._node_id,
            prompt_tokens=accepted.prompt_tokens,
            request_id=self.request_id,
            prompt_token_ids=() if known else accepted.prompt_token_ids,
            identity=self.identity,
        )

    def _finished(self, completed: worker_pb.Completed) -> pb.Finished:
        prefill = to_seconds(completed.first_token)
        submitted_at = self._first_work.submitted_at if self._first_work else 0.0
        self._timeline.add(PhaseKind.PREFILL, submitted_at, prefill)
        if read := self._arriving and self._arriving.untold(submitted_at):
            kind = STEP_KINDS[read.phase]
            self._timeline.add(kind, read.start, read.duration, read.size_bytes)
        receipt = types_pb.Receipt(
            phases=[wire.phase_message(phase) for phase in self._timeline.phases],
            node_id=self._node_id,
            instance_id=self.request.instance_id,
            kept_prompt=completed.kept_prompt,
        )
        return pb.Finished(
            reason=completed.reason,
            usage=completed.usage,
            receipt=receipt,
            stop=completed.stop if completed.HasField("stop") else None,
        )

    def _event(
        self,
        *,
        started: pb.Started | None = None,
        prompt_logprobs: pb.PromptLogprobs | None = None,
        tokens: pb.Tokens | None = None,
        moved: pb.Moved | None = None,
        finished: pb.Finished | None = None,
    ) -> pb.GenerateResponse:
        event = pb.GenerateResponse(
            sequence=self._sequence,
            started=started,
            prompt_logprobs=prompt_logprobs,
            tokens=tokens,
            moved=moved,
            finished=finished,
        )
        self._sequence += 1
        return event


async def until_grown(generation: Generation, timeout: float) -> bool:
    """Returns with its next output, or at its end; false if neither comes in time (seconds)."""
    try:
        await asyncio.wait_for(generation.outputs.grown().wait(), timeout)
    except TimeoutError:
        return False
    return True
