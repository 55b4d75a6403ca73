"""What the node is asked and what it reports, between its own types and the protocol's messages."""

import socket
from collections.abc import Sequence

from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1 import node_service_pb2 as node_pb
from serverlessllm.v1 import types_pb2 as pb

from sllm import bounds, errors
from sllm.durations import to_duration
from sllm.embedding.wire import purpose_message
from sllm.node.agent import Agent
from sllm.node.device.interface import DeviceInfo
from sllm.node.generations.outgoing_generation import Destination, Terms
from sllm.node.generations.wire import phase_message
from sllm.node.instances.init_times import InitKey, InitTime
from sllm.node.instances.inspection import AdapterInfo, Base, ModelInfo
from sllm.node.instances.instance import Instance
from sllm.node.instances.memory import MAX_INSTANCES, NodeMemory
from sllm.node.instances.spec import EngineSpec, InstanceSpec
from sllm.node.instances.start import Running
from sllm.node.store.holds import Hold, HoldSpec
from sllm.node.tiers.types import Copy, Link, TierUsage
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


def _concurrency(value: int) -> int:
    return bounds.count(value, "max_concurrency", least=1, most=bounds.MAX_CONCURRENCY)


def hold_spec(request: node_pb.PromoteRequest) -> HoldSpec | None:
    """The hold that a Promote call asks for, if it does.

    Raises:
        errors.InvalidArgument: It would last no time, or for ages.
    """
    if not request.hold_id:
        return None
    hold_id = bounds.name(request.hold_id, "hold_id")
    if not request.HasField("hold_ttl"):
        return HoldSpec(hold_id, None)
    return HoldSpec(hold_id, bounds.positive_duration(request.hold_ttl, "hold_ttl"))


def migration_terms(
    request: node_pb.StartMigrationRequest, context_tokens: int, identity: str
) -> Terms:
    """Where a StartMigration call wants generations to go, of what their instance serves.

    Raises:
        errors.InvalidArgument: It names no address, node or instance, or an unknown reason.
    """
    if not request.to_node_id or not request.to_instance_id:
        raise errors.InvalidArgument("name the node and the instance to migrate to")
    if request.reason not in inference_pb.MigrationReason.values():
        raise errors.InvalidArgument(f"the reason {request.reason} of the migration is unknown")
    address = bounds.address(request.to_address, "to_address")
    to = Destination(request.to_node_id, address, request.to_instance_id)
    return Terms(to, request.reason, context_tokens, identity)


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


def instance_message(instance: Instance, node_id: str) -> pb.Instance:
    """An instance as it is now."""
    message = pb.Instance(
        instance_id=instance.spec.instance_id,
        deployment=instance.spec.deployment,
        node_id=node_id,
        state=pb.InstanceState.ValueType(instance.state),
        running_requests=instance.running_requests,
        kv_bytes=instance.spec.kv_bytes,
        digest=instance.running.digest if instance.running else "",
        worker_pid=instance.worker_pid,
        unread_request_ids=sorted(instance.unread),
        device_index=instance.device,
        identity=instance.identity,
        own_bytes=instance.memory.bytes,
        engine=instance.spec.engine.engine,
        private_bytes=instance.spec.private_bytes,
        config=engine_message(instance.spec.engine),
        adapters=[
            pb.LoadedAdapter(deployment=one.deployment, identity=one.identity, digest=digest)
            for one, digest in (instance.adapters.there if instance.adapters else ())
        ],
    )
    message.started_at.FromDatetime(instance.started_at)
    return message


def ready_message(instance: Instance, node_id: str) -> node_pb.InstanceReady:
    """The last message of a start."""
    running = instance.running
    return node_pb.InstanceReady(
        instance=instance_message(instance, node_id),
        phases=[phase_message(phase) for phase in instance.timeline.phases],
        from_tier=pb.Tier.ValueType(running.from_tier if running else 0),
        model=_running_model(running) if running else None,
    )


def _running_model(running: Running) -> pb.ModelInfo:
    return pb.ModelInfo(
        architecture=running.model.architecture,
        size_bytes=running.tensor_bytes,
        context_tokens=running.model.context_tokens,
        kv_bytes_per_token=running.model.kv_bytes_per_token,
        digest=running.digest,
        identity=running.identity,
        purpose=purpose_message(running.model.purpose),
    )


def copy_message(copy: Copy, holds: Sequence[Hold] = ()) -> pb.CheckpointCopy:
    """A checkpoint on a tier, and what holds it there."""
    return pb.CheckpointCopy(
        digest=copy.digest,
        tier=pb.Tier.ValueType(copy.tier),
        size_bytes=copy.size_bytes,
        resident_bytes=copy.resident_bytes,
        sources=copy.sources,
        leased=copy.leased,
        holds=[_hold(hold) for hold in holds],
        made_of=copy.made_of,
        made_for=copy.made_for,
    )


def _hold(hold: Hold) -> pb.Hold:
    message = pb.Hold(hold_id=hold.hold_id)
    if hold.expires_at is not None:
        message.expires_at.FromNanoseconds(round(hold.expires_at * 1e9))
    return message


def node_message(agent: Agent, node_id: str, address: str) -> pb.Node:
    """The node without its copies."""
    return pb.Node(
        node_id=node_id,
        address=address,
        host=socket.gethostname(),
        tiers=[_usage(usage) for usage in agent.usage()],
        links=[_link(link) for link in agent.links()],
        kv_capacity_bytes=agent.devices.kv_capacity_bytes,
        kv_used_bytes=agent.kv_used_bytes,
        leaving=agent.leaving,
        devices=[_device(device) for device in agent.devices.infos()],
        memory=_memory(agent.memory),
        engines=[pb.NodeEngine(name=one.name, ready=one.ready) for one in agent.engines],
        init_time=None if agent.init_times.mean is None else to_duration(agent.init_times.mean),
        max_tensor_parallel=agent.devices.max_together,
    )


def init_messages(agent: Agent) -> dict[InitKey, pb.InitObservation]:
    """What starts took, by checkpoint and engine."""
    return {key: _init_message(key, time) for key, time in agent.init_times.times.items()}


def _init_message(key: InitKey, time: InitTime) -> pb.InitObservation:
    digest, engine = key
    return pb.InitObservation(
        digest=digest,
        engine=engine,
        size_bytes=time.size_bytes,
        prepare=to_duration(time.prepare),
        attach=to_duration(time.attach),
    )


def _usage(usage: TierUsage) -> pb.TierUsage:
    return pb.TierUsage(
        tier=pb.Tier.ValueType(usage.tier),
        capacity_bytes=usage.capacity_bytes,
        used_bytes=usage.used_bytes,
        problem=usage.problem,
    )


def _device(device: DeviceInfo) -> pb.Device:
    return pb.Device(
        index=device.index,
        name=device.name,
        uuid=device.uuid,
        total_bytes=device.total_bytes,
        free_bytes=device.free_bytes,
        weights_capacity_bytes=device.weights_capacity_bytes,
        weights_used_bytes=device.weights_used_bytes,
        kv_capacity_bytes=device.kv_capacity_bytes,
        kv_used_bytes=device.kv_used_bytes,
        reserved_bytes=device.reserved_bytes,
        idle_bytes=device.idle_bytes,
    )


def _memory(memory: NodeMemory) -> pb.NodeMemory:
    return pb.NodeMemory(
        total_bytes=memory.total_bytes,
        capacity_bytes=memory.capacity_bytes,
        used_bytes=memory.used_bytes,
        instance_bytes=memory.instance_bytes,
        max_instances=MAX_INSTANCES,
    )


def _link(link: Link) -> pb.LinkObservation:
    return pb.LinkObservation(
        from_tier=pb.Tier.ValueType(link.from_tier),
        to_tier=pb.Tier.ValueType(link.to_tier),
        bytes_per_second=link.bytes_per_second,
        queued_bytes=link.queued_bytes,
        in_flight_bytes=link.in_flight_bytes,
    )
