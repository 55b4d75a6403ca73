"""What the node is asked, and answers, between its own types and the protocol's messages."""

from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1 import node_service_pb2 as node_pb
from serverlessllm.v1 import types_pb2 as pb

from sllm import bounds, errors
from sllm.checkpoint.format.experts import ExpertBytes
from sllm.embedding.wire import purpose_message
from sllm.node.api import helpers
from sllm.node.contents import Promotion
from sllm.node.generations.outgoing_generation import Destination, Terms
from sllm.node.instances.inspection import AdapterInfo, Base, ModelInfo
from sllm.node.instances.instance import Instance
from sllm.node.instances.spec import EngineSpec, InstanceSpec
from sllm.node.instances.zygotes import AUTO
from sllm.node.peers.types import Peer
from sllm.node.store.holds import HoldSpec
from sllm.node.tiers.types import STORED_ON
from sllm.node.transfers.work import Progress
from sllm.node.worker.backends.names import TRANSFORMERS
from sllm.node.worker.messages import ParserNames


def instance_spec(request: node_pb.StartInstanceRequest) -> InstanceSpec:
    """What a StartInstance call asks for.

    Raises:
        errors.InvalidArgument: A name or a number is out of its bounds.
    """
    if not request.instance_id:
        raise errors.InvalidArgument("instance_id is empty; an instance has an id of its own")
    return InstanceSpec(
        instance_id=bounds.name(request.instance_id, "instance_id"),
        deployment=bounds.name(request.deployment, "deployment"),
        source=request.source,
        engine=engine_spec(request.engine),
        kv_bytes=bounds.count(request.kv_bytes, "kv_bytes"),
        identity=request.identity,
        private_bytes=(
            bounds.count(request.private_bytes, "private_bytes")
            if request.HasField("private_bytes")
            else None
        ),
        peers=helpers.peers(request),
        lenders=helpers.lenders(request),
        forms=helpers.forms(request),
    )


def engine_spec(config: pb.EngineConfig) -> EngineSpec:
    """How a model is to be run.

    Raises:
        errors.InvalidArgument: A number is out of its bounds.
    """
    return EngineSpec(
        engine=config.engine or TRANSFORMERS,  # what earlier versions leave unsaid
        dtype=config.dtype or None,
        kv_cache_tokens=(
            bounds.count(config.kv_cache_tokens, "kv_cache_tokens", least=1)
            if config.HasField("kv_cache_tokens")
            else None
        ),
        max_concurrency=(
            _concurrency(config.max_concurrency) if config.HasField("max_concurrency") else None
        ),
        pack=config.pack,
        parsers=parser_names(config),
        tensor_parallel=tensor_parallel(config),
        max_adapters=bounds.count(config.max_adapters, "max_adapters", most=bounds.MAX_ADAPTERS),
        max_adapter_rank=(
            bounds.count(config.max_adapter_rank, "max_adapter_rank", least=1)
            if config.HasField("max_adapter_rank")
            else None
        ),
        expert_bytes=expert_bytes(config),
    )


def engine_message(spec: EngineSpec) -> pb.EngineConfig:
    """What an instance was started with, as `engine_spec` reads it."""
    return pb.EngineConfig(
        engine=spec.engine,
        dtype=spec.dtype or "",
        kv_cache_tokens=spec.kv_cache_tokens,
        max_concurrency=spec.max_concurrency,
        pack=spec.pack,
        tool_parser=spec.parsers.tool,
        reasoning_parser=spec.parsers.reasoning,
        tensor_parallel=spec.tensor_parallel,
        max_adapters=spec.max_adapters,
        max_adapter_rank=spec.max_adapter_rank,
        expert_memory_bytes=spec.expert_bytes,
    )


def parser_names(config: pb.EngineConfig | node_pb.InspectSourceRequest) -> ParserNames:
    """What is to take answers apart.

    Raises:
        errors.InvalidArgument: A name is too long.
    """
    return ParserNames(
        bounds.name(config.tool_parser, "tool_parser"),
        bounds.name(config.reasoning_parser, "reasoning_parser"),
    )


def tensor_parallel(
    config: pb.EngineConfig | node_pb.InspectSourceRequest | node_pb.PromoteRequest,
) -> int:
    """Devices that an instance runs on together.

    Raises:
        errors.InvalidArgument: It is negative, or too many.
    """
    asked, most = config.tensor_parallel or 1, bounds.MAX_TENSOR_PARALLEL
    return bounds.count(asked, "tensor_parallel", least=1, most=most)


def expert_bytes(config: pb.EngineConfig | node_pb.InspectSourceRequest) -> int | None:
    """Memory for the experts of an instance. None: all weights are in memory.

    Raises:
        errors.InvalidArgument: It is none.
    """
    if not config.HasField("expert_memory_bytes"):
        return None
    return bounds.count(config.expert_memory_bytes, "expert_memory_bytes", least=1)


def _concurrency(value: int) -> int:
    return bounds.count(value, "max_concurrency", least=1, most=bounds.MAX_CONCURRENCY)


def promotion(request: node_pb.PromoteRequest) -> Promotion:
    """What a Promote call asks for.

    Raises:
        errors.InvalidArgument: A name or a number is out of its bounds, or nothing stays on the
            tier.
    """
    return Promotion(
        source=request.source,
        dtype=request.dtype or None,
        tier=bounds.one_of(request.tier, STORED_ON, "tier"),
        hold=_hold_spec(request),
        pack=request.pack,
        give_up=request.give_up,
        identity=request.identity,
        engine=request.engine or AUTO,
        tensor_parallel=tensor_parallel(request),
        peers=helpers.peers(request),
    )


def _hold_spec(request: node_pb.PromoteRequest) -> HoldSpec | None:
    if not request.hold_id:
        return None
    hold_id = bounds.name(request.hold_id, "hold_id")
    if not request.HasField("hold_ttl"):
        return HoldSpec(hold_id, None)
    return HoldSpec(hold_id, bounds.positive_duration(request.hold_ttl, "hold_ttl"))


def migration_terms(
    request: node_pb.StartMigrationRequest, instance: Instance, here: Peer | None
) -> Terms:
    """Where a StartMigration call wants generations to go, of what their instance serves.

    `here`: this node, as others have pages from it. None: they have none.

    Raises:
        errors.InvalidArgument: It names no address, node or instance, or an unknown reason.
    """
    if not request.to_node_id or not request.to_instance_id:
        raise errors.InvalidArgument("name the node and the instance to migrate to")
    if request.reason not in inference_pb.MigrationReason.values():
        raise errors.InvalidArgument(f"the reason {request.reason} of the migration is unknown")
    if request.way not in pb.MoveWay.values():
        raise errors.InvalidArgument(f"the way {request.way} of a KV cache is unknown")
    address = bounds.address(request.to_address, "to_address")
    to = Destination(request.to_node_id, address, request.to_instance_id)
    context_tokens = instance.running.context_tokens if instance.running else 0
    return Terms(
        to,
        request.reason,
        context_tokens,
        instance.identity,
        pages=instance.kept_pages,
        way=request.way,
        here=here,
    )


def loading(progress: Progress) -> pb.Loading:
    """How far a load is."""
    return pb.Loading(
        phase=pb.LoadPhase.ValueType(progress.phase),
        from_tier=pb.Tier.ValueType(progress.from_tier),
        loaded_bytes=progress.loaded_bytes,
        total_bytes=progress.total_bytes,
    )


def model_info(model: ModelInfo) -> pb.ModelInfo:
    """What a model needs."""
    return pb.ModelInfo(
        architecture=model.architecture,
        size_bytes=model.size_bytes,
        context_tokens=model.context_tokens,
        kv_bytes_per_token=model.kv_bytes_per_token,
        digest=model.digest,
        identity=model.identity,
        private_bytes=model.private.bytes if model.private else None,
        private_bytes_per_request=model.private.bytes_per_request if model.private else 0,
        purpose=purpose_message(model.purpose),
        experts=_experts(model.experts) if model.experts else None,
    )


def _experts(found: ExpertBytes) -> pb.MixtureOfExperts:
    return pb.MixtureOfExperts(
        size_bytes=found.stored,
        memory_bytes=found.total,
        least_memory_bytes=found.largest_layer,
    )


def adapter_info(adapter: AdapterInfo) -> pb.ModelInfo:
    """What an adapter is."""
    return pb.ModelInfo(
        size_bytes=adapter.size_bytes,
        digest=adapter.digest,
        identity=adapter.identity,
        adapter=pb.AdapterInfo(
            rank=adapter.rank,
            target_modules=adapter.target_modules,
            base_identity=adapter.base_identity,
        ),
    )


def info(found: ModelInfo | AdapterInfo) -> pb.ModelInfo:
    """What is in the tiers."""
    return adapter_info(found) if isinstance(found, AdapterInfo) else model_info(found)


def adapter_base(message: node_pb.AdapterBase, engine: str) -> Base:
    """What an adapter is to be held against.

    Raises:
        errors.InvalidArgument: Its bound is none.
    """
    rank = bounds.count(message.max_adapter_rank, "max_adapter_rank", least=1)
    return Base(message.source, message.dtype or None, message.identity, engine, rank)
