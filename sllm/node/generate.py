"""One request's stream: from what the worker puts out to the events of the protocol."""

from collections.abc import AsyncIterator, Iterator, Sequence

from opentelemetry import trace
from serverlessllm.v1 import inference_service_pb2 as pb
from serverlessllm.v1 import types_pb2 as types_pb
from serverlessllm.v1 import worker_service_pb2 as worker_pb

from sllm.clock import Clock
from sllm.node import wire
from sllm.node.phases import PhaseKind, Timeline
from sllm.node.workers import Worker

tracer = trace.get_tracer("sllm")


class Generation:
    """A request on an instance of this node."""

    def __init__(self, request: pb.GenerateRequest, node_id: str, clock: Clock) -> None:
        self._request = request
        self._node_id = node_id
        self._timeline = Timeline(clock)
        self._submitted_at = clock.now()
        self._sequence = 0

    async def events(self, worker: Worker) -> AsyncIterator[pb.GenerateResponse]:
        """Submits the request and gives its events, the last of them `finished`.

        A reader that leaves cancels the request in the engine.

        Raises:
            errors.SllmError: The worker refused the request, or gave it up.
        """
        outputs = worker.submit(self._request)
        try:
            with tracer.start_as_current_span("sllm.node.generate"):
                finished = False
                while not finished:
                    for event in self._translate(await outputs.take()):
                        finished = event.HasField("finished")
                        yield event
        finally:
            worker.release(self._request.request_id)

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
                    raise wire.failure(output.failure)
        yield from self._token_events(tokens)
        if completed:
            yield self._event(finished=self._finished(completed))

    def _token_events(self, parts: Sequence[pb.Tokens]) -> Iterator[pb.GenerateResponse]:
        merged = parts[0] if len(parts) == 1 else wire.merge_tokens(parts)
        if not merged.token_ids and not merged.text:
            return
        yield self._event(tokens=merged)

    def _started(self, accepted: worker_pb.Accepted) -> pb.Started:
        known = self._request.HasField("token_ids")
        return pb.Started(
            instance_id=self._request.instance_id,
            node_id=self._node_id,
            prompt_tokens=accepted.prompt_tokens,
            request_id=self._request.request_id,
            prompt_token_ids=() if known else accepted.prompt_token_ids,
        )

    def _finished(self, completed: worker_pb.Completed) -> pb.Finished:
        prefill = completed.first_token.ToNanoseconds() / 1e9
        self._timeline.add(PhaseKind.PREFILL, self._submitted_at, prefill)
        receipt = types_pb.Receipt(
            phases=[wire.phase_message(phase) for phase in self._timeline.phases],
            node_id=self._node_id,
            instance_id=self._request.instance_id,
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
        tokens: pb.Tokens | None = None,
        finished: pb.Finished | None = None,
    ) -> pb.GenerateResponse:
        event = pb.GenerateResponse(
            sequence=self._sequence, started=started, tokens=tokens, finished=finished
        )
        self._sequence += 1
        return event
