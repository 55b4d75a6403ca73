"""From what callers say to the protocol's requests."""

import hashlib
import os
import secrets
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from google.protobuf import duration_pb2
from serverlessllm.v1 import cluster_service_pb2 as cluster_pb
from serverlessllm.v1 import deployment_service_pb2 as deployment_pb
from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1 import types_pb2 as pb

from sllm import errors
from sllm.chat.wire import keep_images, output_parsing
from sllm.client.types import enums
from sllm.client.types.chats import ChatMessage, StructuredOutput
from sllm.client.wire import chats, forms
from sllm.client.wire.chats import Chat
from sllm.sampling import MAX_SEED

_MOST_SAMPLES: Final = 128
"""That a request may ask for; the control plane refuses more."""


def new_request_id() -> str:
    """An id that no other request has."""
    return uuid.uuid4().hex


def deploy(
    name: str,
    source: str | os.PathLike[str],
    *,
    engine: str,
    dtype: str | None,
    kv_cache_tokens: int | None,
    max_concurrency: int | None,
    pack: bool,
    tool_parser: str,
    reasoning_parser: str,
    tensor_parallel: int | None,
    expert_memory: int | None,
    chat_template: str,
    image_hosts: Sequence[str],
    min_replicas: int,
    max_replicas: int,
    keep_alive: float,
    target_concurrency: int | None,
    learn_keep_alive: bool | None,
    target_time_per_token: float | None,
    base: str,
    max_adapters: int,
    max_adapter_rank: int | None,
) -> deployment_pb.DeployRequest:
    """The request that creates or changes a deployment.

    Raises:
        errors.InvalidArgument: A number does not fit its field.
    """
    with fitting():
        return deployment_pb.DeployRequest(
            request_id=new_request_id(),
            name=name,
            source=source if isinstance(source, str) else str(Path(source).absolute()),
            engine=pb.EngineConfig(
                engine=engine,
                dtype=dtype or "",
                kv_cache_tokens=kv_cache_tokens,
                max_concurrency=max_concurrency,
                pack=pack,
                tool_parser=tool_parser,
                reasoning_parser=reasoning_parser,
                tensor_parallel=tensor_parallel or 0,
                max_adapters=max_adapters,
                max_adapter_rank=max_adapter_rank,
                expert_memory_bytes=expert_memory,
            ),
            scaling=pb.ScalingPolicy(
                min_replicas=min_replicas,
                max_replicas=max_replicas,
                keep_alive=duration(keep_alive),
                target_concurrency=target_concurrency,
                learn_keep_alive=learn_keep_alive,
                target_time_per_token=(
                    None if target_time_per_token is None else duration(target_time_per_token)
                ),
            ),
            base=base,
            chat_template=chat_template,
            image_hosts=image_hosts,
        )


def generate(
    deployment: str,
    prompt: str | None,
    prompt_token_ids: Sequence[int] | None,
    messages: Sequence[ChatMessage] | None,
    *,
    chat: Chat,
    request_id: str | None,
    sampling: Mapping[str, object],
    structured_output: StructuredOutput | None,
    stop: str | Sequence[str],
    stop_token_ids: Sequence[int],
    include_stop: bool,
    skip_special_tokens: bool,
    max_tokens: int | None,
    ignore_eos: bool,
    logprobs: int | None,
    failover: bool,
    priority: int,
    keep_alive: float | None,
    linger: float = 0.0,
    attempt: str | None = None,
    n: int | None = None,
    prompt_logprobs: int | None = None,
    zone: str | None = None,
) -> inference_pb.GenerateRequest:
    """The request for a generation; `sampling` holds the fields of SamplingParams.

    Raises:
        errors.InvalidPrompt: Not exactly one of the prompts was given, or a message is none.
        errors.InvalidStructuredOutput: Not exactly one form was given, or its schema is no JSON.
        errors.InvalidArgument: A number does not fit its field.
    """
    with fitting():
        request = inference_pb.GenerateRequest(
            deployment=deployment,
            request_id=request_id or new_request_id(),
            sampling=pb.SamplingParams(**sampling),  # type: ignore[arg-type]  # by name
            stop=[stop] if isinstance(stop, str) else stop,
            stop_token_ids=stop_token_ids,
            include_stop=include_stop,
            skip_special_tokens=None if skip_special_tokens else False,
            max_tokens=max_tokens,
            ignore_eos=ignore_eos,
            logprobs=logprobs,
            no_failover=not failover,
            priority=priority,
            keep_alive=None if keep_alive is None else duration(keep_alive),
            n=n,
            prompt_logprobs=prompt_logprobs,
            attempt=attempt,
            zone=zone,
        )
        if linger:
            request.linger.CopyFrom(duration(linger))
        _set_prompt(request, prompt, prompt_token_ids, messages, chat)
        if structured_output is not None:
            request.structured_output.CopyFrom(forms.structured_output(structured_output))
        _settle_seed(request.sampling)
    return request


def resume(
    request: inference_pb.GenerateRequest,
    sequence: int,
    token_ids: Sequence[Sequence[int]],
    prompt_logprobs: int = 0,
) -> None:
    """Makes a request ask for what comes after what there is.

    Args:
        request: As it was sent before.
        sequence: The number of the first message that is not there.
        token_ids: Of each sample, those that are.
        prompt_logprobs: Of so many tokens of the prompt, from its beginning.
    """
    request.resume_from_sequence = sequence
    if prompt_logprobs:
        _continuation(request, 0).prompt_logprobs = prompt_logprobs
    for choice, tokens in enumerate(token_ids):
        continuation = _continuation(request, choice)
        continuation.token_ids[:] = tokens
        continuation.SetInParent()  # also without any tokens


def attach(request: inference_pb.GenerateRequest, *, chooses_seed: bool) -> None:
    """Makes a request ask for all of a generation that may be under way.

    `chooses_seed`: whether the id decides the seed, so that it is the same whoever asks.
    """
    if chooses_seed and request.sampling.HasField("seed"):
        digest = hashlib.sha256(request.request_id.encode()).digest()
        request.sampling.seed = int.from_bytes(digest[:7])
    resume(request, 0, [()] * min(max(1, request.n), _MOST_SAMPLES))


def settle(request: inference_pb.GenerateRequest, message: inference_pb.GenerateResponse) -> None:
    """Keeps what it takes to read on: the prompt's tokens, what generates from them, and ends."""
    if message.HasField("choice_finished"):
        _choice(request, message.choice).finished.CopyFrom(message.choice_finished)
    if not message.HasField("started"):
        return
    if request.HasField("messages"):
        request.parsing.CopyFrom(output_parsing(request.messages))
    if message.started.prompt_token_ids:
        keep_images(request)
        request.token_ids.CopyFrom(pb.TokenIds(ids=message.started.prompt_token_ids))
    _continuation(request, message.choice).identity = message.started.identity


def _continuation(request: inference_pb.GenerateRequest, choice: int) -> inference_pb.Continuation:
    return _choice(request, choice).continuation if request.n > 1 else request.continuation


def _choice(request: inference_pb.GenerateRequest, choice: int) -> inference_pb.ChoiceContinuation:
    for one in request.choices:
        if one.choice == choice:
            return one
    return request.choices.add(choice=choice)


def _settle_seed(sampling: pb.SamplingParams) -> None:
    """Chooses the seed where it is left open, so that a draw can be repeated elsewhere."""
    greedy = sampling.HasField("temperature") and sampling.temperature == 0
    if not greedy and not sampling.HasField("seed"):
        sampling.seed = secrets.randbelow(MAX_SEED + 1)


def migrate(
    request_id: str | None,
    instance_id: str | None,
    to_node: str | None,
    way: enums.MoveWay | str | None = None,
) -> cluster_pb.MigrateRequest:
    """The request that moves generations.

    Raises:
        errors.InvalidArgument: Not exactly one of request and instance was named, or no such way.
    """
    if (request_id is None) == (instance_id is None):
        raise errors.InvalidArgument("name one of request_id and instance_id")
    with fitting():
        request = cluster_pb.MigrateRequest(to_node_id=to_node or "", way=_way(way))
        if request_id is not None:
            request.request_id = request_id
        if instance_id is not None:
            request.instance_id = instance_id
    return request


def _way(way: enums.MoveWay | str | None) -> pb.MoveWay.ValueType:
    if way is None:
        return pb.MOVE_WAY_UNSPECIFIED
    try:
        return pb.MoveWay.Value(f"MOVE_WAY_{way.upper()}")
    except ValueError as error:
        raise errors.InvalidArgument(f"way is TOKENS, PAGES or None, not {way!r}") from error


def _set_prompt(
    request: inference_pb.GenerateRequest,
    prompt: str | None,
    prompt_token_ids: Sequence[int] | None,
    messages: Sequence[ChatMessage] | None,
    chat: Chat,
) -> None:
    prompts = {"prompt": prompt, "prompt_token_ids": prompt_token_ids, "messages": messages}
    check_prompts(prompts, chat)
    if prompt is not None:
        request.text = prompt
    elif prompt_token_ids is not None:
        request.token_ids.CopyFrom(pb.TokenIds(ids=prompt_token_ids))
    else:
        request.messages.CopyFrom(chats.chat_messages(messages or (), chat))


def check_prompts(prompts: Mapping[str, object], chat: Chat) -> None:
    """Checks that one prompt was given, of all the forms that it may have.

    Raises:
        errors.InvalidPrompt: There is none, or another one, or what belongs to another.
    """
    given = [form for form in prompts.values() if form is not None]
    if len(given) != 1:
        *others, last = prompts
        raise errors.InvalidPrompt(
            f"give exactly one of {', '.join(others)} and {last}, "
            f"not {'none' if not given else len(given)}"
        )
    if prompts["messages"] is None and chat != Chat():
        raise errors.InvalidPrompt("tools and templates belong to messages, and there are none")


def duration(seconds: float) -> duration_pb2.Duration:
    """A Duration of `seconds`."""
    message = duration_pb2.Duration()
    message.FromNanoseconds(round(seconds * 1e9))
    return message


@contextmanager
def fitting() -> Iterator[None]:
    """What protobuf refuses to hold was no sensible value.

    Raises:
        errors.InvalidArgument: A value inside is out of the bounds of its field, or no text.
    """
    try:
        yield
    except UnicodeEncodeError as error:
        raise errors.InvalidArgument(f"{error.object!r} cannot be written as UTF-8") from error
    except (ValueError, OverflowError) as error:
        raise errors.InvalidArgument(f"a value is out of its bounds: {error}") from error
