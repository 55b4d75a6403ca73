"""Requests as the router serves them, from and to the protocol's messages."""

import secrets
from collections.abc import Iterable, Sequence
from typing import Protocol, TypeAlias

from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1 import types_pb2 as pb

from sllm import bounds, errors, prompt_size
from sllm.chat.calls import call_schema
from sllm.chat.conversation import Conversation
from sllm.chat.wire import (
    conversation,
    image_messages,
    keep_images,
    output_parsing,
    parsing,
    tool_choice,
)
from sllm.control.cluster.instances import Instance
from sllm.control.cluster.specs import Deployment
from sllm.control.cluster.tiers import Tier
from sllm.control.types.calls import GenerationAsk, Prompt
from sllm.control.types.migrations import Departure
from sllm.control.types.receipts import KeptPrompt, Phase, PhaseKind, Receipt
from sllm.control.types.status import Loading
from sllm.control.wire import common
from sllm.control.wire.migrations import cache_message
from sllm.sampling import MAX_SEED, Sampling
from sllm.structured_output import wire as structured_output
from sllm.structured_output.form import Form


class HasReceipt(Protocol):
    """The end of a request."""

    @property
    def receipt(self) -> pb.Receipt:
        """Where the time to the first token went."""


# Relayed or forwarded as they are: a message of the hot path is never translated.
GenerateRequest: TypeAlias = inference_pb.GenerateRequest
GenerateResponse: TypeAlias = inference_pb.GenerateResponse
Tokens: TypeAlias = inference_pb.Tokens
PromptLogprobs: TypeAlias = inference_pb.PromptLogprobs
Moved: TypeAlias = inference_pb.Moved
Finished: TypeAlias = inference_pb.Finished


# --- requests ---------------------------------------------------------------------------------


def generation_ask(request: GenerateRequest) -> GenerationAsk:
    """The parts of a request that have bounds.

    Raises:
        errors.InvalidArgument: A duration, a count or the id is out of its bounds.
    """
    bounds.name(request.request_id, "request_id")
    bounds.name(request.attempt, "attempt")
    zone(request)
    prompt_told(request)
    return GenerationAsk(
        prompt=_prompt(request),
        sampling=_sampling(request.sampling),
        form=form(request),
        conversation=_conversation(request),
        stop=tuple(request.stop),
        max_tokens=request.max_tokens if request.HasField("max_tokens") else None,
        logprobs=request.logprobs if request.HasField("logprobs") else None,
        prompt_logprobs=request.prompt_logprobs if request.HasField("prompt_logprobs") else None,
        priority=request.priority,
        keep_alive=keep_alive(request),
        linger=linger(request),
    )


def check_size(request: GenerateRequest, deployment: Deployment) -> None:
    """Refuses a request that the context cannot take, before a copy of its prompt is made.

    Raises:
        errors.ContextExceeded: With the numbers.
    """
    context = deployment.context_tokens
    beside = [request.structured_output, *request.choices]  # each choice counts in its own request
    size = request.ByteSize() - sum(one.ByteSize() for one in beside)
    size -= len(request.messages.chat_template.encode())  # the deployment's
    size -= image_bytes(request)  # which have bounds of their own
    prompt_size.check_size(size, context)
    prompt_size.check_tokens(len(request.token_ids.ids), context)


def image_parts(request: GenerateRequest) -> list[pb.Image]:
    """Its images, in their order: of a conversation, or of the tokens that were made of one."""
    return [*image_messages(request.messages), *request.images]


def image_bytes(request: GenerateRequest) -> int:
    """What its images take."""
    return sum(one.ByteSize() for one in image_parts(request))


def _prompt(request: GenerateRequest) -> Prompt:
    kind = request.WhichOneof("prompt")
    if kind is None:
        return Prompt.MISSING
    filled = bool(request.text or request.token_ids.ids or request.messages.messages)
    return Prompt.PRESENT if filled else Prompt.EMPTY


def _sampling(params: pb.SamplingParams) -> Sampling:
    return Sampling.of({field.name: value for field, value in params.ListFields()})


def form(request: GenerateRequest) -> Form | None:
    """That the text is to have. None: any will do.

    Raises:
        errors.InvalidStructuredOutput: It is none.
    """
    if not request.HasField("structured_output"):
        return None
    return structured_output.form(request.structured_output)


def settle_parsing(request: GenerateRequest, deployment: Deployment) -> None:
    """Says how the answer in a conversation is to be taken apart, and its form where calls are due.

    Raises:
        errors.InvalidPrompt: A tool is none, or to be called and not there; or the answer is to
            have another form.
    """
    is_chat = request.HasField("messages")
    told = request.messages if is_chat else request.parsing
    forced = tool_choice(told.tool_choice).is_forced
    if not (forced or deployment.spec.engine.has_parsers):
        request.ClearField("parsing")
        return
    check_size(request, deployment)
    if is_chat:
        request.parsing.CopyFrom(output_parsing(request.messages))
    if not request.HasField("parsing"):
        return
    asked = parsing(request.parsing)
    asked.validate()
    if forced:
        _require_call(request, call_schema(asked.tool_choice, asked.tools))


def _require_call(request: GenerateRequest, schema: str) -> None:
    due = pb.StructuredOutput(json_schema=schema)
    if request.HasField("structured_output") and request.structured_output != due:
        raise errors.InvalidPrompt("an answer that is a call of a tool has no other form")
    request.structured_output.CopyFrom(due)


def _conversation(request: GenerateRequest) -> Conversation | None:
    return conversation(request.messages) if request.HasField("messages") else None


def keep_alive(request: GenerateRequest) -> float | None:
    """Seconds that the request's instance stays at least. None: as its policy says."""
    if not request.HasField("keep_alive"):
        return None
    return bounds.duration(request.keep_alive, "keep_alive")


def zone(request: GenerateRequest) -> str:
    """Where the caller is. Empty: it does not say.

    Raises:
        errors.InvalidArgument: It is no name of a zone.
    """
    return bounds.zone(request.zone, "zone")


def resumes_from(request: GenerateRequest) -> int | None:
    """The number of the first message that the caller of an earlier stream lacks."""
    if not request.HasField("resume_from_sequence"):
        return None
    return bounds.count(request.resume_from_sequence, "resume_from_sequence")


def linger(request: GenerateRequest) -> float:
    """Seconds for which the caller wants a generation to go on without a reader."""
    return bounds.duration(request.linger, "linger", most=bounds.MAX_LINGER)


def attempt(request: inference_pb.CancelRequest) -> str | None:
    """The attempt at a request that alone is to end. None: whichever reads it."""
    return request.attempt if request.HasField("attempt") else None


def check_attempt(request: GenerateRequest, attempt: str | None) -> None:
    """Leaves a request alone that is read by another attempt than the one that is to end.

    Raises:
        errors.RequestNotFound: It is.
    """
    if attempt not in (None, request.attempt):
        raise errors.RequestNotFound(
            f"request {request.request_id}: attempt {attempt!r} is not under way, another reads it"
        )


def prompt_told(request: GenerateRequest) -> int:
    """Tokens of the prompt, from its beginning, whose logprobs the caller has."""
    told = request.continuation.prompt_logprobs
    return bounds.count(told, "continuation.prompt_logprobs")


def set_linger(request: GenerateRequest, seconds: float) -> None:
    """Has the node go on for so long when this control plane is gone."""
    request.linger.CopyFrom(common.duration(seconds))


def settle_seed(request: GenerateRequest) -> None:
    """Chooses the seed of a request that leaves it open, so that it can go on anywhere."""
    sampling = request.sampling
    greedy = sampling.HasField("temperature") and sampling.temperature == 0
    if not greedy and not sampling.HasField("seed"):
        sampling.seed = secrets.randbelow(MAX_SEED + 1)


def go_on(
    request: GenerateRequest, prompt: Sequence[int], generated: Sequence[int], identity: str
) -> None:
    """Makes `request` go on after the tokens that were generated, with the same checkpoint.

    The prompt's tokens, where they are known, take the place of what they were made of: a chat
    template may give others tomorrow, since some of them tell the date.
    """
    if prompt:
        keep_images(request)
        request.token_ids.CopyFrom(pb.TokenIds(ids=prompt))
    request.continuation.CopyFrom(inference_pb.Continuation(token_ids=generated, identity=identity))


# --- events -----------------------------------------------------------------------------------


def queued_event(position: int, estimated_wait: float | None) -> GenerateResponse:
    """The first event of every stream."""
    wait = common.optional_duration(estimated_wait)
    queued = inference_pb.Queued(position=position, estimated_wait=wait)
    return GenerateResponse(queued=queued)


def loading_event(loading: Loading) -> GenerateResponse:
    """How far the start is for which a request waits."""
    return GenerateResponse(loading=common.loading_message(loading))


def migrated_event(departure: Departure, to: Instance, pause: float) -> GenerateResponse:
    """Tells the caller that another instance has gone on."""
    migrated = inference_pb.Migrated(
        from_node_id=departure.instance.node_id,
        to_node_id=to.node_id,
        to_instance_id=to.instance_id,
        pause=common.duration(pause),
        reason=inference_pb.MigrationReason.ValueType(departure.reason),
        cache=cache_message(departure.cache),
    )
    return GenerateResponse(migrated=migrated)


# --- receipts ---------------------------------------------------------------------------------


def phases(messages: Iterable[pb.Phase]) -> tuple[Phase, ...]:
    """Phases as a node has measured them."""
    return tuple(
        Phase(
            PhaseKind(one.kind),
            common.seconds(one.start),
            common.seconds(one.duration),
            one.size_bytes if one.HasField("size_bytes") else None,
        )
        for one in messages
    )


def kept_prompt(receipt: pb.Receipt) -> tuple[KeptPrompt, ...]:
    """What a node says that it had kept of a prompt."""
    told = (one for one in receipt.kept_prompt if one.tier)
    return tuple(KeptPrompt(Tier(one.tier), one.tokens) for one in told)


def fill_receipt(answer: HasReceipt, receipt: Receipt) -> None:
    """Replaces a node's receipt with the whole one."""
    answer.receipt.CopyFrom(receipt_message(receipt))


def receipt_message(receipt: Receipt) -> pb.Receipt:
    """Where the time to the first token went, as callers are told."""
    return pb.Receipt(
        cold=receipt.cold,
        from_tier=pb.Tier.ValueType(receipt.from_tier or 0),
        phases=[_phase_message(phase) for phase in receipt.phases],
        time_to_first_token=common.duration(receipt.time_to_first_token),
        estimated_start=common.optional_duration(receipt.estimated_start),
        node_id=receipt.node_id,
        instance_id=receipt.instance_id,
        actual_start=common.optional_duration(receipt.actual_start),
        engine=receipt.engine,
        deployment=receipt.deployment,
        adapter=receipt.adapter,
        kept_prompt=[
            pb.KeptPromptTokens(tier=pb.Tier.ValueType(one.tier), tokens=one.tokens)
            for one in receipt.kept_prompt
        ],
    )


def _phase_message(phase: Phase) -> pb.Phase:
    return pb.Phase(
        kind=pb.PhaseKind.ValueType(phase.kind),
        start=common.duration(phase.start),
        duration=common.duration(phase.duration),
        size_bytes=phase.size_bytes,
    )
