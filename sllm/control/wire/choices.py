"""Several samples of one prompt: the requests that they are served as, and their end as one."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from serverlessllm.v1 import inference_service_pb2 as pb
from serverlessllm.v1 import types_pb2 as types_pb

from sllm import bounds, errors
from sllm.control.wire.generations import Finished, GenerateRequest, GenerateResponse
from sllm.sampling import MAX_SEED

MAX_CHOICES: Final = 128
MAX_ID: Final = 240
"""Characters of the id of a request with several; those of its choices are longer."""

_ID: Final = re.compile(r".*/choice/\d+", re.DOTALL)


def choice_id(request_id: str, choice: int) -> str:
    """The id of the request that a choice is served as."""
    return f"{request_id}/choice/{choice}"


def choice_ids(request_id: str) -> list[str]:
    """All that the choices of a request may have."""
    return [choice_id(request_id, choice) for choice in range(MAX_CHOICES)]


def count(request: GenerateRequest) -> int:
    """How many samples are asked for.

    Raises:
        errors.InvalidArgument: It is out of its bounds, or the request says something that does
            not go with it; or its id is one that a choice may have.
    """
    n = bounds.count(request.n, "n", least=1, most=MAX_CHOICES) if request.HasField("n") else 1
    if _ID.fullmatch(request.request_id):
        raise errors.InvalidArgument(
            f"request_id {request.request_id!r} is as the router names samples: choose another"
        )
    if n == 1 and request.choices:
        raise errors.InvalidArgument("choices belong to several samples, and n is 1")
    if n > 1:
        _check_several(request)
    return n


def _check_several(request: GenerateRequest) -> None:
    if len(request.request_id) > MAX_ID:
        raise errors.InvalidArgument(
            f"request_id may have {MAX_ID} characters with several samples, it has "
            f"{len(request.request_id)}"
        )
    resumes = request.HasField("resume_from_sequence")
    if request.HasField("continuation") or (request.choices and not resumes):
        raise errors.InvalidArgument(
            "several samples go on by choices and resume_from_sequence together"
        )


def continuations(request: GenerateRequest) -> Mapping[int, pb.ChoiceContinuation]:
    """What the caller has of each choice, by its number; nothing of those that are not there.

    Raises:
        errors.InvalidArgument: One of them is none, or comes twice, or has ended with other tokens.
    """
    found: dict[int, pb.ChoiceContinuation] = {}
    for one in request.choices:
        bounds.count(one.choice, "choice", most=request.n - 1)
        if one.choice in found:
            raise errors.InvalidArgument(f"choice {one.choice} goes on twice")
        bounds.count(one.continuation.prompt_logprobs, "continuation.prompt_logprobs")
        if one.HasField("finished"):
            _check_end(one)
        found[one.choice] = one
    return found


def _check_end(one: pb.ChoiceContinuation) -> None:
    usage, tokens = one.finished.usage, len(one.continuation.token_ids)
    if usage.completion_tokens != tokens:
        raise errors.InvalidArgument(
            f"choice {one.choice} has finished with {usage.completion_tokens} tokens, "
            f"and comes with {tokens}"
        )
    time = one.finished.receipt.time_to_first_token
    bounds.duration(time, "time_to_first_token")


def requests(
    request: GenerateRequest, had: Mapping[int, pb.ChoiceContinuation]
) -> Iterator[tuple[int, GenerateRequest]]:
    """The request of each choice that has not finished, by its number."""
    for choice in range(request.n):
        if choice not in had or not had[choice].HasField("finished"):
            yield choice, sample(request, choice, had.get(choice))


def sample(
    request: GenerateRequest, choice: int, had: pb.ChoiceContinuation | None = None
) -> GenerateRequest:
    """The request that one of several samples is served as."""
    one = GenerateRequest()
    one.CopyFrom(request)
    one.ClearField("n")
    one.ClearField("choices")
    if choice:
        one.ClearField("prompt_logprobs")  # the first tells of the prompt
    one.request_id = choice_id(request.request_id, choice)
    if one.sampling.HasField("seed"):
        one.sampling.seed = (one.sampling.seed + choice) % (MAX_SEED + 1)
    if request.HasField("resume_from_sequence"):
        one.resume_from_sequence = 0  # its events are numbered by whoever puts them together
        one.continuation.SetInParent()
    if had:
        one.continuation.CopyFrom(had.continuation)
    return one


def set_prompt(request: GenerateRequest, token_ids: Sequence[int]) -> None:
    """Has a request begin with the very prompt that another choice has told."""
    request.token_ids.CopyFrom(types_pb.TokenIds(ids=token_ids))


def finished_event(finished: Finished) -> GenerateResponse:
    """The end of one choice."""
    return GenerateResponse(choice_finished=finished)


def together(ends: Mapping[int, Finished]) -> GenerateResponse:
    """The end of them all: of the first, with the tokens of all, and the first token's receipt."""
    first = min(ends.values(), key=_time_to_first_token)
    finished = Finished(reason=ends[0].reason, receipt=first.receipt)
    if ends[0].HasField("stop"):
        finished.stop = ends[0].stop
    usages = [one.usage for one in ends.values()]
    finished.usage.prompt_tokens = max(one.prompt_tokens for one in usages)
    finished.usage.completion_tokens = sum(one.completion_tokens for one in usages)
    finished.usage.cached_prompt_tokens = min(one.cached_prompt_tokens for one in usages)
    return GenerateResponse(finished=finished)


def _time_to_first_token(finished: Finished) -> int:
    return finished.receipt.time_to_first_token.ToNanoseconds()
