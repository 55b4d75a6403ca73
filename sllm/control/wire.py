"""Between the control plane's own types and the protocol's messages."""

import copy
import hashlib
import secrets
from collections.abc import Iterable, Sequence
from typing import Final, TypeAlias

import grpc
from google.protobuf import duration_pb2, timestamp_pb2
from serverlessllm.v1 import cluster_service_pb2 as cluster_pb
from serverlessllm.v1 import deployment_service_pb2 as deployment_pb
from serverlessllm.v1 import fleet_service_pb2 as fleet_pb
from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1 import node_service_pb2 as node_pb
from serverlessllm.v1 import types_pb2 as pb

from sllm import errors
from sllm.control import deployments as model
from sllm.control import migrations, topology
from sllm.control.admission import GenerationAsk, Prompt
from sllm.control.fleet import Delta, Full, Report
from sllm.control.inits import InitKey, Inits, InitTime
from sllm.control.migrations import Ended, News, Round, Stayed
from sllm.control.progress import Departure
from sllm.control.receipts import Phase, PhaseKind, Receipt
from sllm.control.status import DeploymentStatus, Loading, LoadPhase
from sllm.control.store import Call
from sllm.sampling import MAX_SEED, Sampling

# Relayed or forwarded as they are: a message of the hot path is never translated.
GenerateRequest: TypeAlias = inference_pb.GenerateRequest
GenerateResponse: TypeAlias = inference_pb.GenerateResponse
CancelRequest: TypeAlias = inference_pb.CancelRequest
Tokens: TypeAlias = inference_pb.Tokens
Moved: TypeAlias = inference_pb.Moved
MigrationReason = inference_pb.MigrationReason
Finished: TypeAlias = inference_pb.Finished
DeployResponse: TypeAlias = deployment_pb.DeployResponse
Metadata: TypeAlias = grpc.aio.Metadata
Mutating: TypeAlias = (
    deployment_pb.DeployRequest
    | deployment_pb.DeleteDeploymentRequest
    | cluster_pb.PrefetchRequest
    | cluster_pb.PinRequest
    | cluster_pb.UnpinRequest
    | cluster_pb.DrainNodeRequest
    | cluster_pb.UndrainNodeRequest
)
"""Calls that change something, and that their callers may name."""


# --- times ------------------------------------------------------------------------------------


def duration(seconds: float) -> duration_pb2.Duration:
    """A Duration of `seconds`."""
    result = duration_pb2.Duration()
    result.FromNanoseconds(round(seconds * 1e9))
    return result


def seconds(value: duration_pb2.Duration) -> float:
    """Seconds of a Duration."""
    return value.seconds + value.nanos / 1e9


def _timestamp(epoch_seconds: float) -> timestamp_pb2.Timestamp:
    result = timestamp_pb2.Timestamp()
    result.FromNanoseconds(round(epoch_seconds * 1e9))
    return result


def optional_timestamp(epoch_seconds: float | None) -> timestamp_pb2.Timestamp | None:
    """A Timestamp, or none."""
    return None if epoch_seconds is None else _timestamp(epoch_seconds)


# --- deployments ------------------------------------------------------------------------------


def call(request: Mutating) -> Call:
    """The id of a mutating call, and a digest of all the rest."""
    content = copy.copy(request)
    content.ClearField("request_id")
    name = content.DESCRIPTOR.full_name.encode()
    digest = hashlib.sha256(name + b"\0" + content.SerializeToString(deterministic=True))
    return Call(request.request_id, digest.hexdigest())


def deployment_spec(request: deployment_pb.DeployRequest) -> model.DeploymentSpec:
    """What a Deploy call asks for.

    Raises:
        errors.InvalidSource: Its source is no URL.
    """
    return model.DeploymentSpec(
        name=request.name,
        source=model.normalize_source(request.source),
        engine=_engine(request.engine),
        scaling=_scaling(request.scaling),
    )


def _engine(config: pb.EngineConfig) -> model.EngineConfig:
    default = model.EngineConfig()
    return model.EngineConfig(
        engine=config.engine or default.engine,
        dtype=config.dtype,
        kv_cache_tokens=config.kv_cache_tokens if config.HasField("kv_cache_tokens") else None,
        max_concurrency=(
            config.max_concurrency
            if config.HasField("max_concurrency")
            else default.max_concurrency
        ),
        pack=config.pack,
    )


def _scaling(policy: pb.ScalingPolicy) -> model.ScalingPolicy:
    default = model.ScalingPolicy()
    least = policy.min_replicas if policy.HasField("min_replicas") else default.min_replicas
    most = policy.max_replicas if policy.HasField("max_replicas") else default.max_replicas
    keep = seconds(policy.keep_alive) if policy.HasField("keep_alive") else default.keep_alive
    target = policy.target_concurrency if policy.HasField("target_concurrency") else None
    return model.ScalingPolicy(least, most, keep, target)


def _engine_message(engine: model.EngineConfig) -> pb.EngineConfig:
    return pb.EngineConfig(
        engine=engine.engine,
        dtype=engine.dtype,
        kv_cache_tokens=engine.kv_cache_tokens,
        max_concurrency=engine.max_concurrency,
        pack=engine.pack,
    )


def model_info(info: pb.ModelInfo) -> model.ModelInfo:
    """What a node has read from a model's files."""
    return model.ModelInfo(
        architecture=info.architecture,
        size_bytes=info.size_bytes,
        context_tokens=info.context_tokens,
        kv_bytes_per_token=info.kv_bytes_per_token,
        digest=info.digest,
    )


def _model_message(info: model.ModelInfo) -> pb.ModelInfo:
    return pb.ModelInfo(
        architecture=info.architecture,
        size_bytes=info.size_bytes,
        context_tokens=info.context_tokens,
        kv_bytes_per_token=info.kv_bytes_per_token,
        digest=info.digest,
    )


def deployment_message(status: DeploymentStatus) -> deployment_pb.Deployment:
    """A deployment as callers see it."""
    spec = status.deployment.spec
    return deployment_pb.Deployment(
        name=spec.name,
        source=spec.source,
        engine=_engine_message(spec.engine),
        scaling=pb.ScalingPolicy(
            min_replicas=spec.scaling.min_replicas,
            max_replicas=spec.scaling.max_replicas,
            keep_alive=duration(spec.scaling.keep_alive),
            target_concurrency=spec.scaling.target_concurrency,
        ),
        model=_model_message(status.deployment.model),
        state=deployment_pb.DeploymentState.ValueType(status.state),
        message=status.message,
        created_at=_timestamp(status.deployment.created_at),
        ready_instances=status.ready_instances,
        queued_requests=status.queued_requests,
        loading=loading_message(status.loading) if status.loading else None,
    )


def deploy_answer(status: DeploymentStatus) -> bytes:
    """The answer to Deploy, as it is kept for a repeated call."""
    return deployment_pb.DeployResponse(deployment=deployment_message(status)).SerializeToString()


DELETE_ANSWER: Final = deployment_pb.DeleteDeploymentResponse().SerializeToString()
"""The answer to DeleteDeployment."""


# --- the fleet --------------------------------------------------------------------------------


def report(request: fleet_pb.ReportRequest) -> Report:
    """A node's message."""
    body: Full | Delta | None = None
    if request.HasField("full"):
        node, instances = request.full.node, request.full.instances
        facts = _facts(node, request.node_id)
        body = Full(facts, _copies(node.copies), _instances(instances, request.node_id))
    elif request.HasField("delta"):
        delta = request.delta
        changed = _facts(delta.node, request.node_id) if delta.HasField("node") else None
        body = Delta(
            changed,
            _copies(delta.copies),
            _instances(delta.instances, request.node_id),
            _inits(delta.init_observations),
        )
    return Report(request.node_id, request.revision, body)


def _facts(node: pb.Node, node_id: str) -> topology.NodeFacts:
    return topology.NodeFacts(
        node_id=node_id,
        address=node.address,
        host=node.host,
        leaving=node.leaving,
        tiers={
            topology.Tier(usage.tier): topology.TierUsage(
                usage.capacity_bytes, usage.used_bytes, usage.problem
            )
            for usage in node.tiers
        },
        links={
            (topology.Tier(link.from_tier), topology.Tier(link.to_tier)): topology.Link(
                link.bytes_per_second, link.queued_bytes, link.in_flight_bytes
            )
            for link in node.links
        },
        kv_capacity=node.kv_capacity_bytes,
        init_time=seconds(node.init_time) if node.HasField("init_time") else None,
        inits=Inits(_inits(node.init_observations)),
    )


def _inits(observations: Iterable[pb.InitObservation]) -> dict[InitKey, InitTime]:
    return {
        (one.digest, one.engine): InitTime(
            one.size_bytes, seconds(one.prepare), seconds(one.attach)
        )
        for one in observations
    }


def _copies(copies: Iterable[pb.CheckpointCopy]) -> tuple[topology.Copy, ...]:
    return tuple(
        topology.Copy(
            digest=one.digest,
            tier=topology.Tier(one.tier),
            size_bytes=one.size_bytes,
            resident_bytes=one.resident_bytes,
            sources=tuple(one.sources),
            leased=one.leased,
            holds=tuple(map(_hold, one.holds)),
        )
        for one in copies
    )


def _hold(one: pb.Hold) -> topology.Hold:
    expires_at = one.expires_at.ToNanoseconds() / 1e9 if one.HasField("expires_at") else None
    return topology.Hold(one.hold_id, expires_at)


def _instances(instances: Iterable[pb.Instance], node_id: str) -> tuple[topology.Instance, ...]:
    return tuple(instance(one, node_id) for one in instances)


def instance(one: pb.Instance, node_id: str) -> topology.Instance:
    """An instance as the node `node_id` reports it."""
    return topology.Instance(
        instance_id=one.instance_id,
        deployment=one.deployment,
        node_id=node_id,
        state=topology.InstanceState(one.state),
        kv_bytes=one.kv_bytes,
        digest=one.digest,
        running=one.running_requests,
        started_at=one.started_at.ToNanoseconds() / 1e9,
        worker_pid=one.worker_pid,
        unread=tuple(one.unread_request_ids),
    )


def instance_message(one: topology.Instance) -> pb.Instance:
    """An instance as operators see it."""
    return pb.Instance(
        instance_id=one.instance_id,
        deployment=one.deployment,
        node_id=one.node_id,
        state=pb.InstanceState.ValueType(one.state),
        running_requests=one.running,
        kv_bytes=one.kv_bytes,
        digest=one.digest,
        started_at=_timestamp(one.started_at),
        worker_pid=one.worker_pid,
        unread_request_ids=one.unread,
    )


def node_message(view: topology.NodeView, *, draining: bool = False) -> pb.Node:
    """A node as operators see it."""
    facts = view.facts
    return pb.Node(
        node_id=facts.node_id,
        address=facts.address,
        host=facts.host,
        tiers=[
            pb.TierUsage(
                tier=pb.Tier.ValueType(tier),
                capacity_bytes=usage.capacity_bytes,
                used_bytes=usage.used_bytes,
                problem=usage.problem,
            )
            for tier, usage in facts.tiers.items()
        ],
        kv_capacity_bytes=facts.kv_capacity,
        kv_used_bytes=view.kv_held,
        copies=[_copy_message(one) for one in view.copies.values()],
        links=[_link_message(key, link) for key, link in facts.links.items()],
        init_time=None if facts.init_time is None else duration(facts.init_time),
        init_observations=[_init_message(key, time) for key, time in facts.inits.times.items()],
        connected_at=_timestamp(view.connected_at),
        draining=draining,
    )


def _init_message(key: InitKey, time: InitTime) -> pb.InitObservation:
    digest, engine = key
    return pb.InitObservation(
        digest=digest,
        engine=engine,
        size_bytes=time.size_bytes,
        prepare=duration(time.prepare),
        attach=duration(time.attach),
    )


def _copy_message(one: topology.Copy) -> pb.CheckpointCopy:
    return pb.CheckpointCopy(
        digest=one.digest,
        tier=pb.Tier.ValueType(one.tier),
        size_bytes=one.size_bytes,
        resident_bytes=one.resident_bytes,
        sources=one.sources,
        leased=one.leased,
        holds=[
            pb.Hold(hold_id=hold.hold_id, expires_at=optional_timestamp(hold.expires_at))
            for hold in one.holds
        ],
    )


def _link_message(key: topology.LinkKey, link: topology.Link) -> pb.LinkObservation:
    return pb.LinkObservation(
        from_tier=pb.Tier.ValueType(key[0]),
        to_tier=pb.Tier.ValueType(key[1]),
        bytes_per_second=link.bytes_per_second,
        queued_bytes=link.queued_bytes,
        in_flight_bytes=link.in_flight_bytes,
    )


def tier(value: pb.Tier.ValueType) -> topology.Tier | None:
    """A tier, if one is named."""
    return topology.Tier(value) if value else None


def start_request(
    deployment: model.Deployment, one: topology.Instance
) -> node_pb.StartInstanceRequest:
    """What a node is told to start."""
    return node_pb.StartInstanceRequest(
        instance_id=one.instance_id,
        deployment=deployment.name,
        source=deployment.spec.source,
        engine=_engine_message(deployment.spec.engine),
        kv_bytes=one.kv_bytes,
    )


# --- requests ---------------------------------------------------------------------------------


def generation_ask(request: GenerateRequest) -> GenerationAsk:
    """The parts of a request that have bounds."""
    return GenerationAsk(
        prompt=_prompt(request),
        sampling=_sampling(request.sampling),
        stop=tuple(request.stop),
        max_tokens=request.max_tokens if request.HasField("max_tokens") else None,
        logprobs=request.logprobs if request.HasField("logprobs") else None,
        priority=request.priority,
        keep_alive=keep_alive(request),
    )


def keep_alive(request: GenerateRequest) -> float | None:
    """Seconds that the request's instance stays at least. None: as its policy says."""
    return seconds(request.keep_alive) if request.HasField("keep_alive") else None


def _prompt(request: GenerateRequest) -> Prompt:
    kind = request.WhichOneof("prompt")
    if kind is None:
        return Prompt.MISSING
    filled = bool(request.text or request.token_ids.ids or request.messages.messages)
    return Prompt.PRESENT if filled else Prompt.EMPTY


def _sampling(params: pb.SamplingParams) -> Sampling:
    given = {field.name: value for field, value in params.ListFields()}
    return Sampling(**given)


def settle_seed(request: GenerateRequest) -> None:
    """Chooses the seed of a request that leaves it open, so that it can go on anywhere."""
    sampling = request.sampling
    greedy = sampling.HasField("temperature") and sampling.temperature == 0
    if not greedy and not sampling.HasField("seed"):
        sampling.seed = secrets.randbelow(MAX_SEED + 1)


def linger(request: GenerateRequest) -> float:
    """Seconds for which the caller wants a generation to go on without a reader."""
    return seconds(request.linger)


def set_linger(request: GenerateRequest, seconds: float) -> None:
    """Has the node go on for so long when this control plane is gone."""
    request.linger.CopyFrom(duration(seconds))


def resumes_from(request: GenerateRequest) -> int | None:
    """The number of the first message that the caller of an earlier stream lacks."""
    return request.resume_from_sequence if request.HasField("resume_from_sequence") else None


def go_on(request: GenerateRequest, prompt: Sequence[int], generated: Sequence[int]) -> None:
    """Makes `request` go on after the tokens that were generated.

    The prompt's tokens, where they are known, take the place of what they were made of: a chat
    template may give others tomorrow, since some of them tell the date.
    """
    if prompt:
        request.token_ids.CopyFrom(pb.TokenIds(ids=prompt))
    request.continuation.CopyFrom(inference_pb.Continuation(token_ids=generated))


def migrated_event(departure: Departure, to: topology.Instance, pause: float) -> GenerateResponse:
    """Tells the caller that another instance has gone on."""
    migrated = inference_pb.Migrated(
        from_node_id=departure.instance.node_id,
        to_node_id=to.node_id,
        to_instance_id=to.instance_id,
        pause=duration(pause),
        reason=inference_pb.MigrationReason.ValueType(departure.reason),
    )
    return GenerateResponse(migrated=migrated)


def migration_news(response: node_pb.StartMigrationResponse) -> News:
    """What a node says of a generation that it moves."""
    request_id = response.request_id
    match response.WhichOneof("event"):
        case "progress":
            one = response.progress
            return Round(request_id, one.round, one.computed_tokens, one.gap_tokens)
        case "done":
            done = response.done
            times = seconds(done.duration), seconds(done.cutover)
            return migrations.Moved(request_id, done.rounds, done.tokens, *times)
        case "failure":
            failure = response.failure
            error = errors.make_error(failure.code, failure.reason, failure.message)
            return Stayed(request_id, error)
        case _:
            return Ended(request_id)


def queued_event(position: int, estimated_wait: float | None) -> GenerateResponse:
    """The first event of every stream."""
    wait = None if estimated_wait is None else duration(estimated_wait)
    queued = inference_pb.Queued(position=position, estimated_wait=wait)
    return GenerateResponse(queued=queued)


def loading_event(loading: Loading) -> GenerateResponse:
    """How far the start is for which a request waits."""
    return GenerateResponse(loading=loading_message(loading))


def loading(progress: pb.Loading) -> Loading:
    """How far a node says that a load is."""
    remaining = progress.estimated_remaining
    return Loading(
        phase=LoadPhase(progress.phase),
        from_tier=tier(progress.from_tier),
        loaded_bytes=progress.loaded_bytes,
        total_bytes=progress.total_bytes,
        remaining=seconds(remaining) if progress.HasField("estimated_remaining") else None,
    )


def loading_message(progress: Loading) -> pb.Loading:
    """How far a load is, for callers."""
    return pb.Loading(
        phase=pb.LoadPhase.ValueType(progress.phase),
        from_tier=pb.Tier.ValueType(progress.from_tier or 0),
        loaded_bytes=progress.loaded_bytes,
        total_bytes=progress.total_bytes,
        estimated_remaining=None if progress.remaining is None else duration(progress.remaining),
    )


def phases(messages: Iterable[pb.Phase]) -> tuple[Phase, ...]:
    """Phases as a node has measured them."""
    return tuple(
        Phase(
            PhaseKind(one.kind),
            seconds(one.start),
            seconds(one.duration),
            one.size_bytes if one.HasField("size_bytes") else None,
        )
        for one in messages
    )


def fill_receipt(finished: Finished, receipt: Receipt) -> None:
    """Replaces a node's receipt with the whole one."""
    estimate, actual = receipt.estimated_start, receipt.actual_start
    finished.receipt.CopyFrom(
        pb.Receipt(
            cold=receipt.cold,
            from_tier=pb.Tier.ValueType(receipt.from_tier or 0),
            phases=[_phase_message(phase) for phase in receipt.phases],
            time_to_first_token=duration(receipt.time_to_first_token),
            estimated_start=None if estimate is None else duration(estimate),
            node_id=receipt.node_id,
            instance_id=receipt.instance_id,
            actual_start=None if actual is None else duration(actual),
        )
    )


def _phase_message(phase: Phase) -> pb.Phase:
    return pb.Phase(
        kind=pb.PhaseKind.ValueType(phase.kind),
        start=duration(phase.start),
        duration=duration(phase.duration),
        size_bytes=phase.size_bytes,
    )
