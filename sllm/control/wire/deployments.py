"""Deployments, from and to the protocol's messages."""

from typing import Final

from serverlessllm.v1 import deployment_service_pb2 as deployment_pb
from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1 import model_service_pb2 as model_pb
from serverlessllm.v1 import types_pb2 as pb

from sllm import bounds
from sllm.control.cluster import specs, validation
from sllm.control.types.calls import AnswerFormat
from sllm.control.types.status import DeploymentStatus
from sllm.control.wire import common
from sllm.embedding.wire import purpose, purpose_message

MAX_TIME_PER_TOKEN: Final = 60.0
"""Seconds between two tokens that may be asked for, at most."""


def spec(request: deployment_pb.DeployRequest) -> specs.DeploymentSpec:
    """What a Deploy call asks for.

    Raises:
        errors.InvalidSource: Its source is no URL.
        errors.InvalidArgument: A duration is out of its bounds.
    """
    return specs.DeploymentSpec(
        name=request.name,
        source=validation.normalize_source(request.source),
        engine=engine_config(request.engine),
        scaling=_scaling(request.scaling),
        base=request.base,
        chat_template=request.chat_template,
        image_hosts=tuple(request.image_hosts),
    )


def engine_config(config: pb.EngineConfig) -> specs.EngineConfig:
    """How an engine is set up, as a caller asks for it or a node tells of an instance."""
    default = specs.EngineConfig()
    return specs.EngineConfig(
        engine=config.engine or specs.AUTO,
        dtype=config.dtype,
        kv_cache_tokens=config.kv_cache_tokens if config.HasField("kv_cache_tokens") else None,
        max_concurrency=(
            config.max_concurrency
            if config.HasField("max_concurrency")
            else default.max_concurrency
        ),
        pack=config.pack,
        tool_parser=config.tool_parser,
        reasoning_parser=config.reasoning_parser,
        tensor_parallel=config.tensor_parallel or default.tensor_parallel,
        max_adapters=config.max_adapters,
        max_adapter_rank=config.max_adapter_rank if config.HasField("max_adapter_rank") else None,
        expert_memory=(
            config.expert_memory_bytes if config.HasField("expert_memory_bytes") else None
        ),
    )


def _scaling(policy: pb.ScalingPolicy) -> specs.ScalingPolicy:
    default = specs.ScalingPolicy()
    least = policy.min_replicas if policy.HasField("min_replicas") else default.min_replicas
    most = policy.max_replicas if policy.HasField("max_replicas") else default.max_replicas
    keep = (
        bounds.duration(policy.keep_alive, "keep_alive")
        if policy.HasField("keep_alive")
        else default.keep_alive
    )
    target = policy.target_concurrency if policy.HasField("target_concurrency") else None
    learn = policy.learn_keep_alive if policy.HasField("learn_keep_alive") else None
    time = (
        bounds.positive_duration(
            policy.target_time_per_token, "target_time_per_token", most=MAX_TIME_PER_TOKEN
        )
        if policy.HasField("target_time_per_token")
        else None
    )
    return specs.ScalingPolicy(least, most, keep, target, learn, time)


def engine_message(engine: specs.EngineConfig) -> pb.EngineConfig:
    """How an engine is set up, for callers and nodes."""
    return pb.EngineConfig(
        engine=engine.engine,
        dtype=engine.dtype,
        kv_cache_tokens=engine.kv_cache_tokens,
        max_concurrency=engine.max_concurrency,
        pack=engine.pack,
        tool_parser=engine.tool_parser,
        reasoning_parser=engine.reasoning_parser,
        tensor_parallel=engine.tensor_parallel,
        max_adapters=engine.max_adapters,
        max_adapter_rank=engine.max_adapter_rank,
        expert_memory_bytes=engine.expert_memory,
    )


def model_info(info: pb.ModelInfo) -> specs.ModelInfo:
    """What a node has read from a model's files."""
    return specs.ModelInfo(
        architecture=info.architecture,
        size_bytes=info.size_bytes,
        context_tokens=info.context_tokens,
        kv_bytes_per_token=info.kv_bytes_per_token,
        digest=info.digest,
        identity=info.identity,
        private_bytes=(
            bounds.count(info.private_bytes, "private_bytes")
            if info.HasField("private_bytes")
            else None
        ),
        private_bytes_per_request=bounds.count(
            info.private_bytes_per_request, "private_bytes_per_request"
        ),
        purpose=purpose(info.purpose),
        adapter=_adapter(info.adapter) if info.HasField("adapter") else None,
        experts=_experts(info.experts) if info.HasField("experts") else None,
    )


def _experts(info: pb.MixtureOfExperts) -> specs.Experts:
    return specs.Experts(
        bounds.count(info.size_bytes, "size_bytes"),
        bounds.count(info.memory_bytes, "memory_bytes"),
        bounds.count(info.least_memory_bytes, "least_memory_bytes"),
    )


def _adapter(info: pb.AdapterInfo) -> specs.AdapterInfo:
    return specs.AdapterInfo(info.rank, tuple(info.target_modules), info.base_identity)


def model_source(spec: specs.DeploymentSpec, model: specs.ModelInfo) -> model_pb.ModelSource:
    """Whose small files a node is to read."""
    return model_pb.ModelSource(
        source=spec.source,
        dtype=spec.engine.dtype,
        engine=spec.engine.engine,
        identity=model.identity,
    )


def template_trial(
    spec: specs.DeploymentSpec, model: specs.ModelInfo
) -> model_pb.RenderChatRequest:
    """Has a node render a conversation with a deployment's template."""
    said = pb.ChatMessage(role="user", content="Hi")
    return model_pb.RenderChatRequest(
        deployment=spec.name,
        messages=pb.ChatMessages(messages=[said], chat_template=spec.chat_template),
        model=model_source(spec, model),
    )


def model_message(info: specs.ModelInfo) -> pb.ModelInfo:
    """What a model needs, for callers."""
    return pb.ModelInfo(
        architecture=info.architecture,
        size_bytes=info.size_bytes,
        context_tokens=info.context_tokens,
        kv_bytes_per_token=info.kv_bytes_per_token,
        digest=info.digest,
        identity=info.identity,
        private_bytes=info.private_bytes,
        private_bytes_per_request=info.private_bytes_per_request,
        purpose=purpose_message(info.purpose),
        adapter=_adapter_message(info.adapter) if info.adapter else None,
        experts=_experts_message(info.experts) if info.experts else None,
    )


def _experts_message(info: specs.Experts) -> pb.MixtureOfExperts:
    return pb.MixtureOfExperts(
        size_bytes=info.size_bytes,
        memory_bytes=info.memory_bytes,
        least_memory_bytes=info.least_memory_bytes,
    )


def _adapter_message(info: specs.AdapterInfo) -> pb.AdapterInfo:
    return pb.AdapterInfo(
        rank=info.rank, target_modules=info.target_modules, base_identity=info.base_identity
    )


def adapter_source(deployment: specs.Deployment) -> inference_pb.AdapterSource:
    """An adapter, as a request brings it to a node."""
    spec = deployment.spec
    return inference_pb.AdapterSource(
        deployment=spec.name,
        source=spec.source,
        dtype=spec.engine.dtype,
        pack=spec.engine.pack,
        identity=deployment.model.identity,
        keep_alive=common.duration(spec.scaling.keep_alive),
    )


def message(status: DeploymentStatus) -> deployment_pb.Deployment:
    """A deployment as callers see it."""
    spec = status.deployment.spec
    return deployment_pb.Deployment(
        name=spec.name,
        source=spec.source,
        engine=engine_message(spec.engine),
        scaling=pb.ScalingPolicy(
            min_replicas=spec.scaling.min_replicas,
            max_replicas=spec.scaling.max_replicas,
            keep_alive=common.duration(spec.scaling.keep_alive),
            target_concurrency=spec.scaling.target_concurrency,
            learn_keep_alive=spec.scaling.learn_keep_alive,
            target_time_per_token=common.optional_duration(spec.scaling.target_time_per_token),
        ),
        model=model_message(status.deployment.model),
        state=deployment_pb.DeploymentState.ValueType(status.state),
        message=status.message,
        created_at=common.timestamp(status.deployment.created_at),
        ready_instances=status.ready_instances,
        queued_requests=status.queued_requests,
        loading=common.loading_message(status.loading) if status.loading else None,
        base=spec.base,
        image_hosts=spec.image_hosts,
        learned=common.learned_message(status.learned),
        tuned=common.tuned_message(status.tuned),
    )


def _status(one: deployment_pb.Deployment) -> DeploymentStatus:
    spec = specs.DeploymentSpec(
        one.name,
        one.source,
        engine_config(one.engine),
        _scaling(one.scaling),
        one.base,
        image_hosts=tuple(one.image_hosts),
    )
    created_at = common.seconds(one.created_at)
    return DeploymentStatus(
        deployment=specs.Deployment(spec, model_info(one.model), created_at),
        state=specs.DeploymentState(one.state),
        message=one.message,
        ready_instances=one.ready_instances,
        queued_requests=one.queued_requests,
        loading=common.loading(one.loading) if one.HasField("loading") else None,
    )


def _encode(status: DeploymentStatus) -> bytes:
    return deployment_pb.DeployResponse(deployment=message(status)).SerializeToString()


def _decode(kept: bytes) -> DeploymentStatus:
    return _status(deployment_pb.DeployResponse.FromString(kept).deployment)


DEPLOYED: Final = AnswerFormat(_encode, _decode)
"""How the answer to Deploy is kept."""
