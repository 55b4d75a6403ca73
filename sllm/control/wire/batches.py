"""Batches, from and to the protocol's messages."""

import re
from collections.abc import AsyncIterator, Sequence
from typing import Final, TypeAlias

from serverlessllm.v1 import batch_service_pb2 as pb
from serverlessllm.v1 import embedding_service_pb2 as embedding_pb
from serverlessllm.v1 import inference_service_pb2 as inference_pb

from sllm import bounds, errors, rpc, statuses, token_events
from sllm.control.tenants.names import plain
from sllm.control.types.batches import Asks, Batch, BatchHead, Outcome
from sllm.control.wire import choices, common, generations
from sllm.control.wire.generations import GenerateRequest as GenerateRequest

Batched: TypeAlias = GenerateRequest | pb.BatchEmbedding
EmbedRequest: TypeAlias = embedding_pb.EmbedRequest
EmbedResponse: TypeAlias = embedding_pb.EmbedResponse

_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_LARGEST: Final = rpc.MAX_MESSAGE_BYTES - 4096
_DAY: Final = 24 * 3600.0
_LONGEST: Final = 30 * _DAY
_FOREIGN: Final = (
    "background",
    "instance_id",
    "continuation",
    "resume_from_sequence",
    "linger",
    "priority",
    "keep_alive",
    "choices",
    "prefixes",
)
"""Fields of a request that have no sense where nobody waits for it."""


# --- submitting -------------------------------------------------------------------------------


def head(message: pb.SubmitBatchRequest) -> BatchHead:
    """What the first message says of a batch as a whole.

    Raises:
        errors.InvalidArgument: It is no header, or says what a batch may not have.
    """
    if message.WhichOneof("part") != "header":
        raise errors.InvalidArgument("the first message of a batch is its header")
    header, limit = message.header, _DAY
    if header.batch_id and not _ID.fullmatch(plain(header.batch_id)):
        raise errors.InvalidArgument(
            f"batch_id must be 1-128 of [A-Za-z0-9._-], beginning with a letter or digit, it is "
            f"{header.batch_id!r}"
        )
    if header.HasField("time_limit"):
        limit = bounds.positive_duration(header.time_limit, "time_limit", most=_LONGEST)
    return BatchHead(header.batch_id, limit)


async def requests(
    messages: AsyncIterator[pb.SubmitBatchRequest],
) -> AsyncIterator[Batched]:
    """Those of the messages that follow the header, if all of them have come.

    Raises:
        errors.InvalidArgument: One of them is none, or the end is missing: to the server a call
            that was given up looks like one that has said all.
    """
    count = 0
    async for message in messages:
        match message.WhichOneof("part"):
            case "request":
                count += 1
                yield message.request
            case "embedding":
                count += 1
                yield message.embedding
            case "end" if message.end.requests == count:
                return
            case "end":
                raise errors.InvalidArgument(
                    f"{message.end.requests} requests were sent, and {count} have come"
                )
            case _:
                raise errors.InvalidArgument("after a batch's header come requests, then its end")
    raise errors.InvalidArgument(f"the batch broke off after {count} requests; submit it again")


def asks(request: Batched) -> Asks:
    """What a request is for."""
    return Asks.EMBEDDINGS if isinstance(request, pb.BatchEmbedding) else Asks.GENERATION


def deployment(request: Batched) -> str:
    """Name of the one that it is for."""
    if isinstance(request, pb.BatchEmbedding):
        return request.request.deployment
    return request.deployment


def content(request: Batched) -> bytes:
    """What tells a request from others: the whole of it.

    Raises:
        errors.InvalidArgument: It has a field that only a request has that somebody waits for, or
            asks for too many samples.
    """
    asked = request.request if isinstance(request, pb.BatchEmbedding) else request
    given = {field.name for field, _ in asked.ListFields()}
    if foreign := sorted(given.intersection(_FOREIGN)):
        raise errors.InvalidArgument(f"{foreign[0]} has no place in a batch; leave it out")
    if isinstance(request, GenerateRequest):
        choices.count(request)
    return request.SerializeToString(deterministic=True)


def settled(request: Batched) -> bytes:
    """A request as it is stored: if it is begun twice, it gives the same."""
    if isinstance(request, pb.BatchEmbedding):
        return request.request.SerializeToString()
    stored = GenerateRequest()
    stored.CopyFrom(request)
    generations.settle_seed(stored)
    return stored.SerializeToString()


# --- running ----------------------------------------------------------------------------------


def samples(stored: bytes) -> int:
    """How many a stored request has asked for."""
    return choices.count(GenerateRequest.FromString(stored))


def begun(
    stored: bytes, request_id: str, sample: int, *, may_be_under_way: bool = False
) -> GenerateRequest:
    """One of the samples of a stored request as the router takes it.

    Args:
        stored: As `settled` has made it.
        request_id: Unique among the requests under way.
        sample: Which, from 0.
        may_be_under_way: Whether nodes may have begun it before a restart: it is read on then.
    """
    request = GenerateRequest.FromString(stored)
    request.request_id = request_id
    if request.HasField("n"):
        request = choices.sample(request, sample)
    if may_be_under_way:
        request.resume_from_sequence = 0
        request.continuation.SetInParent()
    return request


class Gathered:
    """An answer, as far as it has come."""

    def __init__(self) -> None:
        self._tokens = generations.Tokens()
        self._finished = generations.Finished()
        self._started = inference_pb.Started()
        self._prompt: inference_pb.PromptLogprobs | None = None

    def take(self, event: generations.GenerateResponse) -> bool:
        """Takes in what has come; says whether an instance has begun with the request."""
        match event.WhichOneof("event"):
            case "started":
                self._started = event.started
            case "prompt_logprobs":
                self._prompt = self._prompt or inference_pb.PromptLogprobs()
                self._prompt.tokens.extend(event.prompt_logprobs.tokens)
            case "tokens":
                token_events.extend(self._tokens, event.tokens)
            case "finished":
                self._finished = event.finished
            case _:
                return False
        return True

    def continue_in(self, request: GenerateRequest) -> None:
        """Makes a request go on after what has come."""
        started = self._started
        token_ids = self._tokens.token_ids
        generations.go_on(request, started.prompt_token_ids, token_ids, started.identity)
        request.continuation.prompt_logprobs = len(self._prompt.tokens) if self._prompt else 0
        request.ClearField("resume_from_sequence")  # nothing of it is under way any more

    def sample(self) -> pb.BatchSample:
        """The whole, once it has finished, as one of several samples."""
        return pb.BatchSample(tokens=self._tokens, finished=self._finished)

    def answer(self, more: Sequence["Gathered"]) -> pb.BatchAnswer:
        """The whole, once it has finished, with the samples after it."""
        finished = self._finished
        if more:
            ends = [self._finished, *(one._finished for one in more)]
            finished = choices.together(dict(enumerate(ends))).finished
        return pb.BatchAnswer(
            tokens=self._tokens,
            finished=finished,
            more=[one.sample() for one in more],
            prompt_logprobs=self._prompt,
        )


def answered(request_id: str, gathered: Sequence[Gathered]) -> bytes:
    """The result of a request that has an answer: all samples of it.

    Raises:
        errors.InvalidArgument: It is larger than any message may be.
    """
    first, *more = gathered
    found = pb.BatchResult(request_id=request_id, answer=first.answer(more))
    return _fitting(found, "ask for fewer tokens, or fewer logprobs")


def embedded(request_id: str, answer: EmbedResponse) -> bytes:
    """The result of a request for vectors.

    Raises:
        errors.InvalidArgument: It is larger than any message may be.
    """
    found = pb.BatchResult(request_id=request_id, embeddings=answer)
    return _fitting(found, "ask for fewer texts at once")


def _fitting(found: pb.BatchResult, instead: str) -> bytes:
    result = found.SerializeToString()
    if len(result) > _LARGEST:
        raise errors.InvalidArgument(
            f"the answer takes {len(result)} bytes, and no message may have more than {_LARGEST}; "
            f"{instead}"
        )
    return result


def failed(request_id: str, error: errors.SllmError) -> bytes:
    """That of one that has none."""
    failure = statuses.to_failure(error)
    return pb.BatchResult(request_id=request_id, failure=failure).SerializeToString()


# --- telling ----------------------------------------------------------------------------------


def message(batch: Batch, kept_until: float | None) -> pb.Batch:
    """A batch, for callers."""
    return pb.Batch(
        batch_id=batch.batch_id,
        state=pb.BatchState.ValueType(batch.state),
        requests=batch.requests,
        finished=batch.finished,
        failed=batch.failed,
        created_at=common.timestamp(batch.created_at),
        expires_at=common.timestamp(batch.expires_at),
        ended_at=common.optional_timestamp(batch.ended_at),
        kept_until=common.optional_timestamp(kept_until),
    )


def result(outcome: Outcome) -> pb.ReadBatchResultsResponse:
    """What has come of a request, for callers."""
    told = pb.BatchResult.FromString(outcome.outcome)
    told.number = outcome.number
    return pb.ReadBatchResultsResponse(result=told)
