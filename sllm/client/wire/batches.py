"""Batches, to and from the protocol's messages."""

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any, Final

from serverlessllm.v1 import batch_service_pb2 as pb
from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1 import types_pb2

from sllm import errors, statuses
from sllm.client.transcript import Transcript
from sllm.client.types import enums
from sllm.client.types.batches import Batch, BatchRequest, BatchResult
from sllm.client.types.events import Result
from sllm.client.wire import embeddings, events, requests
from sllm.client.wire.chats import Chat
from sllm.client.wire.values import moment, named

_SAMPLING: Final = tuple(types_pb2.SamplingParams.DESCRIPTOR.fields_by_name)
_CHAT: Final = {
    "template_arguments" if field.name == "arguments" else field.name: field.name
    for field in fields(Chat)
}
"""Fields of a Chat, by the arguments that they are."""
_EMBEDDING: Final[dict[str, Any]] = {"normalize": None, "dimensions": None, "truncate": False}
"""Of `embed`, where they are not given."""
_DEFAULTS: Final = {
    "prompt": None,
    "prompt_token_ids": None,
    "messages": None,
    "request_id": None,
    "structured_output": None,
    "stop": (),
    "stop_token_ids": (),
    "include_stop": False,
    "skip_special_tokens": True,
    "max_tokens": None,
    "ignore_eos": False,
    "logprobs": None,
    "prompt_logprobs": None,
    "n": None,
    "failover": True,
}
"""Of the arguments that are neither, where they are not given."""


async def submission(
    batch_id: str,
    time_limit: float | None,
    batched: Iterable[BatchRequest] | AsyncIterable[BatchRequest],
) -> AsyncIterator[pb.SubmitBatchRequest]:
    """The messages of a batch."""
    header = pb.BatchHeader(batch_id=batch_id)
    if time_limit is not None:
        header.time_limit.CopyFrom(requests.duration(time_limit))
    yield pb.SubmitBatchRequest(header=header)
    number = 0
    async for one in _each(batched):
        try:
            yield _part(one)
        except errors.SllmError as error:
            raise _of_request(error, one, number) from error
        number += 1
    yield pb.SubmitBatchRequest(end=pb.BatchEnd(requests=number))


def _part(one: BatchRequest) -> pb.SubmitBatchRequest:
    if "inputs" in one:
        return pb.SubmitBatchRequest(embedding=embedding(one))
    return pb.SubmitBatchRequest(request=request(one))


def _of_request(error: errors.SllmError, one: Mapping[str, Any], number: int) -> errors.SllmError:
    """The same error, which says whose it is."""
    name = str(one.get("request_id") or number)
    return type(error)(
        f"request {name!r} (number {number}) of the batch: {error.message}",
        metadata={**error.metadata, "request_id": name, "number": str(number)},
    )


async def _each(
    batched: Iterable[BatchRequest] | AsyncIterable[BatchRequest],
) -> AsyncIterator[BatchRequest]:
    if isinstance(batched, AsyncIterable):
        async for one in batched:
            yield one
    else:
        for one in batched:
            yield one


def request(given: Mapping[str, Any]) -> inference_pb.GenerateRequest:
    """The request of these arguments of `generate`.

    Raises:
        errors.InvalidArgument: One of them is none that a request of a batch has.
        errors.InvalidPrompt: Not exactly one of the prompts was given.
        errors.InvalidStructuredOutput: Not exactly one form was given, or it is no JSON.
    """
    known = {"deployment", *_SAMPLING, *_CHAT, *_DEFAULTS}
    if unknown := sorted(given.keys() - known):
        raise errors.InvalidArgument(
            f"{unknown[0]!r} is no argument of a request in a batch; known: "
            f"{', '.join(sorted(known))}"
        )
    if not given.get("deployment"):
        raise errors.InvalidArgument("a request in a batch names its deployment")
    given = {name: value for name, value in given.items() if value is not None}
    try:
        found = _generate(given)
    except (TypeError, AttributeError) as error:  # it may come out of a file
        raise errors.InvalidArgument(f"an argument is not what it should be: {error}") from error
    found.request_id = given.get("request_id") or ""
    if "seed" not in given:
        found.sampling.ClearField("seed")  # chosen once, there: the same batch may come again
    return found


def embedding(given: Mapping[str, Any]) -> pb.BatchEmbedding:
    """The request of these arguments of `embed`.

    Raises:
        errors.InvalidArgument: One of them is none that a request of a batch has.
    """
    known = {"deployment", "request_id", "inputs", *_EMBEDDING}
    if unknown := sorted(given.keys() - known):
        raise errors.InvalidArgument(
            f"{unknown[0]!r} is no argument of a request for vectors in a batch; known: "
            f"{', '.join(sorted(known))}"
        )
    if not given.get("deployment"):
        raise errors.InvalidArgument("a request in a batch names its deployment")
    options = {name: given.get(name, default) for name, default in _EMBEDDING.items()}
    try:
        asked = embeddings.embed(
            given["deployment"], given["inputs"], priority=0, keep_alive=None, **options
        )
        return pb.BatchEmbedding(request_id=given.get("request_id") or "", request=asked)
    except (TypeError, AttributeError) as error:  # it may come out of a file
        raise errors.InvalidArgument(f"an argument is not what it should be: {error}") from error


def _generate(given: Mapping[str, Any]) -> inference_pb.GenerateRequest:
    sampling = {name: given.get(name) for name in _SAMPLING}
    if biases := sampling["logit_bias"]:
        with requests.fitting():
            sampling["logit_bias"] = {int(token): bias for token, bias in biases.items()}
    return requests.generate(
        given["deployment"],
        **{name: given.get(name, default) for name, default in _DEFAULTS.items()},
        sampling=sampling,
        chat=Chat(**{_CHAT[name]: given[name] for name in _CHAT if name in given}),
        priority=0,
        keep_alive=None,
    )


def batch(message: pb.Batch) -> Batch:
    """A batch, for callers."""
    has_ended = message.HasField("ended_at")
    return Batch(
        batch_id=message.batch_id,
        state=named(enums.BatchState, pb.BatchState.DESCRIPTOR, message.state),
        requests=message.requests,
        finished=message.finished,
        failed=message.failed,
        created_at=moment(message.created_at),
        expires_at=moment(message.expires_at),
        ended_at=moment(message.ended_at) if has_ended else None,
        kept_until=moment(message.kept_until) if has_ended else None,
    )


def result(message: pb.BatchResult) -> BatchResult:
    """What has come of a request, for callers."""
    number, request_id = message.number, message.request_id
    if message.HasField("failure"):
        return BatchResult(number, request_id, None, statuses.from_failure(message.failure))
    if message.HasField("embeddings"):
        found = embeddings.embedded(message.embeddings)
        return BatchResult(number, request_id, None, None, found)
    return BatchResult(number, request_id, _answer(request_id, message.answer), None)


def _answer(request_id: str, answer: pb.BatchAnswer) -> Result:
    transcript = Transcript(
        request_id,
        wants_logprobs=bool(answer.tokens.logprobs),
        wants_prompt=answer.HasField("prompt_logprobs"),
        n=1 + len(answer.more),
    )
    for message in _messages(answer):
        event = events.event(message)
        assert event is not None
        transcript.add(event)
    return transcript.result()


def _messages(answer: pb.BatchAnswer) -> Iterator[inference_pb.GenerateResponse]:
    """The messages of a stream that would have said the same."""
    Message = inference_pb.GenerateResponse
    if answer.HasField("prompt_logprobs"):
        yield Message(prompt_logprobs=answer.prompt_logprobs)
    yield Message(tokens=answer.tokens)
    if answer.more:
        yield Message(choice_finished=answer.finished)  # its reason is that of the first
    for choice, sample in enumerate(answer.more, 1):
        yield Message(choice=choice, tokens=sample.tokens)
        yield Message(choice=choice, choice_finished=sample.finished)
    yield Message(finished=answer.finished)
