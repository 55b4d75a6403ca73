"""Between the worker's own types and the protocol's messages."""

from collections.abc import Sequence
from pathlib import Path

from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1 import types_pb2
from serverlessllm.v1 import worker_service_pb2 as pb

from sllm.chat.wire import conversation, image, tool, tool_choice
from sllm.checkpoint.format.form import WeightForm
from sllm.checkpoint.format.manifest import PartitionEntry, TensorEntry
from sllm.durations import to_duration
from sllm.embedding.wire import purpose_message
from sllm.errors import InvalidPrompt, SllmError
from sllm.node.worker.backends.names import TRANSFORMERS
from sllm.node.worker.engine.cache_share import CacheUse
from sllm.node.worker.engine.interface import Counters, TokenLogprob
from sllm.node.worker.experts.cache import ExpertCounts
from sllm.node.worker.experts.on_demand import WeightsOnDisk
from sllm.node.worker.generation import (
    Accepted,
    Completed,
    Failed,
    GenerationRequest,
    Output,
    PromptPart,
    Tokens,
)
from sllm.node.worker.host import Attached
from sllm.node.worker.messages import ParserNames
from sllm.node.worker.model.device_weights import DeviceWeights
from sllm.node.worker.model.first_use import FirstUse
from sllm.node.worker.model.held_weights import PooledWeights
from sllm.node.worker.model.parsing import Parsing
from sllm.node.worker.model.prompts import Prompt, TextPrompt, TokenPrompt
from sllm.node.worker.preparing import EngineOptions, Prepared
from sllm.node.worker.running import ParameterLocation
from sllm.prompt_prefixes_wire import prefixes
from sllm.sampling import Sampling
from sllm.statuses import to_failure
from sllm.structured_output.wire import form


def engine_options(config: types_pb2.EngineConfig) -> EngineOptions:
    """How a deployment wants its model run."""
    return EngineOptions(
        engine=config.engine or TRANSFORMERS,
        kv_cache_tokens=config.kv_cache_tokens if config.HasField("kv_cache_tokens") else None,
        max_concurrency=config.max_concurrency if config.HasField("max_concurrency") else None,
        dtype=config.dtype or None,
        parsers=ParserNames(config.tool_parser, config.reasoning_parser),
        ranks=config.tensor_parallel or 1,
        takes_adapters=config.max_adapters > 0,
    )


def weights(request: pb.AttachRequest) -> PooledWeights | DeviceWeights | WeightsOnDisk:
    """Where the weights are."""
    tensors = tuple(
        TensorEntry(t.name, t.dtype, tuple(t.shape), t.partition, t.offset, t.size_bytes)
        for t in request.tensors
    )
    if request.HasField("device_memory"):
        memory = request.device_memory
        offsets = tuple(memory.partition_offsets)
        return DeviceWeights(memory.ipc_handle, memory.size_bytes, offsets, tensors)
    if request.HasField("on_disk"):
        return _on_disk(request.on_disk, tensors)
    return PooledWeights(
        request.chunk_bytes,
        tuple(tuple(partition.chunks) for partition in request.partitions),
        tensors,
        Path(request.ready_made_dir) if request.ready_made_dir else None,
        frozenset(request.awaited_chunks),
        tuple(range(one.first, one.first + one.count) for one in request.borrowed),
    )


def _on_disk(message: pb.OnDisk, tensors: tuple[TensorEntry, ...]) -> WeightsOnDisk:
    partitions = tuple(
        PartitionEntry(one.name, one.size_bytes, one.chunk_bytes, tuple(one.digests))
        for one in message.partitions
    )
    directory, most = Path(message.directory), message.expert_memory_bytes
    return WeightsOnDisk(directory, partitions, tensors, most)


def weight_form(message: types_pb2.WeightForm) -> WeightForm:
    """What weights are made ready for."""
    return WeightForm(
        name=message.name,
        engine=message.engine,
        ranks=message.ranks or 1,
        versions=dict(message.versions),
        kernels=message.kernels,
        made_of=message.made_of,
    )


def generation_request(command: pb.RunRequest) -> GenerationRequest:
    """What a caller asks for.

    Raises:
        InvalidPrompt: There is no prompt.
        InvalidStructuredOutput: Its form is none.
    """
    request = command.submit
    return GenerationRequest(
        request_id=request.request_id,
        prompt=_prompt(request),
        sampling=_sampling(request.sampling),
        stop=tuple(request.stop),
        stop_token_ids=frozenset(request.stop_token_ids),
        max_tokens=request.max_tokens if request.HasField("max_tokens") else None,
        ignore_eos=request.ignore_eos,
        logprobs=request.logprobs if request.HasField("logprobs") else None,
        prompt_logprobs=request.prompt_logprobs if request.HasField("prompt_logprobs") else None,
        generated=tuple(request.continuation.token_ids),
        include_stop=request.include_stop,
        skip_special_tokens=(
            request.skip_special_tokens if request.HasField("skip_special_tokens") else True
        ),
        form=form(request.structured_output) if request.HasField("structured_output") else None,
        parsing=_parsing(request.parsing) if request.HasField("parsing") else None,
        gives_way=command.gives_way,
        background=request.background,
        adapter_id=request.adapter.identity,
        prefixes=prefixes(request.prefixes),
    )


def prepare_response(prepared: Prepared, rank_pids: Sequence[int]) -> pb.PrepareResponse:
    """How long preparing took, what the model needs, and who runs it with this process."""
    model = prepared.model
    return pb.PrepareResponse(
        duration=to_duration(prepared.seconds),
        architecture=model.architecture,
        context_tokens=model.context_tokens,
        kv_bytes_per_token=model.kv_bytes_per_token,
        dtype=model.dtype,
        warm_up=None if prepared.warm_up is None else to_duration(prepared.warm_up),
        purpose=purpose_message(model.purpose),
        rank_pids=rank_pids,
        image_bytes=model.image_bytes,
    )


def attach_response(attached: Attached, *, resizes: bool) -> pb.AttachResponse:
    """How bringing the model up went, and whether its cache `resizes`."""
    return pb.AttachResponse(
        attach=to_duration(attached.attach_seconds),
        engine_init=to_duration(attached.engine_seconds),
        context_tokens=attached.context_tokens,
        rank_read_bytes=attached.read_bytes,
        read=to_duration(attached.disk_seconds) if attached.disk_bytes else None,
        read_bytes=attached.disk_bytes,
        resizes_cache=resizes,
    )


def resize_response(use: CacheUse) -> pb.ResizeCacheResponse:
    """What a cache has and needs."""
    return pb.ResizeCacheResponse(
        share_bytes=use.share_bytes, least_bytes=use.least_bytes, used_bytes=use.used_bytes
    )


def run_response(
    outputs: Sequence[Output],
    counters: Counters,
    first_use: FirstUse | None = None,
    corrupt: SllmError | None = None,
) -> pb.RunResponse:
    """What has come of requests, and what was seen of the weights."""
    return pb.RunResponse(
        outputs=[request_output(output) for output in outputs],
        counters=_counters(counters),
        first_use=pb.FirstUse(tensors=first_use.tensors, at_once=first_use.at_once)
        if first_use
        else None,
        corrupt=to_failure(corrupt) if corrupt else None,
    )


def status_response(
    counters: Counters,
    parameters: Sequence[ParameterLocation],
    mapped: tuple[int, int],
    experts: ExpertCounts | None = None,
) -> pb.GetStatusResponse:
    """Counters, and where the weights are."""
    return pb.GetStatusResponse(
        counters=_counters(counters),
        parameters=[
            pb.ParameterLocation(
                name=location.name, address=location.address, size_bytes=location.size_bytes
            )
            for location in parameters
        ],
        mapping_address=mapped[0],
        mapping_bytes=mapped[1],
        experts=None if experts is None else _expert_counters(experts),
    )


def _expert_counters(counts: ExpertCounts) -> pb.ExpertCounters:
    return pb.ExpertCounters(
        used=counts.used,
        waited_for=counts.waited_for,
        read=counts.read,
        read_ahead=counts.read_ahead,
        held_bytes=counts.held_bytes,
    )


def request_output(output: Output) -> pb.RequestOutput:
    """An event of one request."""
    request_id = output.request_id
    match output.event:
        case Accepted(prompt):
            accepted = pb.Accepted(prompt_tokens=len(prompt), prompt_token_ids=prompt)
            return pb.RequestOutput(request_id=request_id, accepted=accepted)
        case PromptPart() as part:
            return pb.RequestOutput(request_id=request_id, prompt_logprobs=_prompt_logprobs(part))
        case Tokens() as tokens:
            return pb.RequestOutput(request_id=request_id, tokens=_tokens(tokens))
        case Completed() as completed:
            return pb.RequestOutput(request_id=request_id, completed=_completed(completed))
        case Failed(error):
            return pb.RequestOutput(request_id=request_id, failure=to_failure(error))


def _prompt(request: inference_pb.GenerateRequest) -> Prompt:
    match request.WhichOneof("prompt"):
        case "text":
            return TextPrompt(request.text)
        case "token_ids":
            return TokenPrompt(tuple(request.token_ids.ids), tuple(map(image, request.images)))
        case "messages":
            return conversation(request.messages)
        case _:
            raise InvalidPrompt("the request has no prompt; set text, token_ids or messages")


def _parsing(message: types_pb2.OutputParsing) -> Parsing:
    choice = tool_choice(message.tool_choice)
    return Parsing(tuple(map(tool, message.tools)), choice, message.template_arguments)


def _sampling(params: types_pb2.SamplingParams) -> Sampling:
    return Sampling.of({field.name: value for field, value in params.ListFields()})


def _completed(completed: Completed) -> pb.Completed:
    usage = completed.usage
    return pb.Completed(
        tokens=_tokens(completed.tokens),
        reason=types_pb2.FinishReason.ValueType(completed.reason),
        usage=types_pb2.Usage(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cached_prompt_tokens=usage.cached_prompt_tokens,
        ),
        stop=completed.stop,
        kept_prompt=[
            types_pb2.KeptPromptTokens(tier=types_pb2.Tier.ValueType(tier), tokens=tokens)
            for tier, tokens in usage.kept.by_tier
        ],
        first_token=to_duration(completed.first_token_seconds),
    )


def _tokens(tokens: Tokens) -> inference_pb.Tokens:
    return inference_pb.Tokens(
        first_index=tokens.first_index,
        token_ids=tokens.token_ids,
        text=tokens.text,
        logprobs=[_logprob(logprob) for logprob in tokens.logprobs],
        reasoning=tokens.reasoning,
        tool_calls=[
            inference_pb.ToolCallDelta(
                index=call.index, id=call.call_id, name=call.name, arguments=call.arguments
            )
            for call in tokens.tool_calls
        ],
        duration=to_duration(tokens.seconds) if tokens.seconds else None,
    )


def _prompt_logprobs(part: PromptPart) -> inference_pb.PromptLogprobs:
    """The first token of a prompt comes after none, and has no logprob."""
    begins = part.first_index == 0
    rows = slice(part.first_index - 1 + begins, part.first_index - 1 + len(part.token_ids))
    told = part.logprobs
    of_rows = zip(
        part.token_ids[begins:],
        told.logprobs[rows].tolist(),
        told.top_ids[rows].tolist(),
        told.top_logprobs[rows].tolist(),
        strict=True,
    )
    message = inference_pb.PromptLogprobs(first_index=part.first_index)
    if begins:
        message.tokens.add(token_id=part.token_ids[0])
    for token_id, logprob, ids, logprobs in of_rows:
        token = message.tokens.add(token_id=token_id, logprob=logprob)
        for top_id, top in zip(ids, logprobs, strict=True):
            token.top.add(token_id=top_id, logprob=top)
    return message


def _logprob(logprob: TokenLogprob) -> types_pb2.TokenLogprob:
    return types_pb2.TokenLogprob(
        logprob=logprob.logprob,
        top=[
            types_pb2.TopLogprob(token_id=top.token_id, logprob=top.logprob) for top in logprob.top
        ],
    )


def _counters(counters: Counters) -> pb.WorkerCounters:
    return pb.WorkerCounters(
        steps=counters.steps,
        generated_tokens=counters.generated_tokens,
        running_requests=counters.running_requests,
        waiting_requests=counters.waiting_requests,
        cancelled_requests=counters.cancelled_requests,
    )
