"""What is said to nodes and what they answer, from and to the protocol's messages."""

from dataclasses import dataclass

from serverlessllm.v1 import node_service_pb2 as pb

from sllm import errors
from sllm.control.cluster.instances import Instance
from sllm.control.cluster.specs import TRANSFORMERS, Deployment, EngineConfig, ModelInfo
from sllm.control.cluster.tiers import Tier
from sllm.control.types.givers import NO_HELPERS, FormGivers, Givers, Helpers, Lender
from sllm.control.types.migrations import Ended, Moved, News, Round, Stayed
from sllm.control.types.receipts import Phase
from sllm.control.types.status import Loading
from sllm.control.wire import common, deployments, generations, reports
from sllm.control.wire.migrations import cache_move


@dataclass(frozen=True, slots=True)
class HoldSpec:
    """The hold that a promotion leaves behind."""

    hold_id: str
    """Unique on the node; a hold of the same id is replaced."""
    ttl: float | None
    """Seconds, from when the checkpoint is there. None: until it is released."""


@dataclass(frozen=True, slots=True)
class StopOrder:
    """How an instance is to end."""

    grace: float
    """Seconds for its requests to end."""
    keep_weights: float | None = None
    """Seconds for which its weights are worth their room in DRAM. None: not known."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The end of a start."""

    instance: Instance
    phases: tuple[Phase, ...]
    """Counted from the node's taking the call."""
    from_tier: Tier | None
    model: ModelInfo
    weights_arriving: bool = False
    """Whether it has not waited for all of its weights: how long it took tells nothing."""


@dataclass(frozen=True, slots=True)
class Inspected:
    """What a node has found at a source."""

    model: ModelInfo
    engine: str
    """That it runs on."""


def stop_request(instance_id: str, order: StopOrder) -> pb.StopInstanceRequest:
    """Has an instance end."""
    return pb.StopInstanceRequest(
        instance_id=instance_id,
        grace=common.duration(order.grace),
        keep_weights=common.optional_duration(order.keep_weights),
    )


def inspect_request(source: str, config: EngineConfig) -> pb.InspectSourceRequest:
    """What a node is asked of a model."""
    return pb.InspectSourceRequest(
        source=source,
        dtype=config.dtype,
        engine=config.engine,
        tool_parser=config.tool_parser,
        reasoning_parser=config.reasoning_parser,
        max_adapters=config.max_adapters,
        tensor_parallel=config.tensor_parallel,
        expert_memory_bytes=config.expert_memory,
    )


def inspect_adapter_request(source: str, dtype: str, base: Deployment) -> pb.InspectSourceRequest:
    """What a node is asked of an adapter over a base."""
    engine = base.spec.engine
    return pb.InspectSourceRequest(
        source=source,
        dtype=dtype,
        engine=engine.engine,
        base=pb.AdapterBase(
            source=base.spec.source,
            dtype=engine.dtype,
            identity=base.model.identity,
            max_adapter_rank=engine.adapter_rank,
        ),
    )


def inspected(response: pb.InspectSourceResponse) -> Inspected:
    """What it has found."""
    found = response.engine or TRANSFORMERS  # nodes of earlier versions have no other
    return Inspected(deployments.model_info(response.model), found)


def peers_message(givers: Givers | None) -> pb.Peers | None:
    """Other nodes to have a checkpoint from."""
    if givers is None:
        return None
    peers = [
        pb.Peer(node_id=one.node_id, address=one.address, fellow=one.fellow)
        for one in givers.givers
    ]
    return pb.Peers(digest=givers.digest, peers=peers)


def start_request(
    deployment: Deployment,
    one: Instance,
    helpers: Helpers = NO_HELPERS,
) -> pb.StartInstanceRequest:
    """What a node is told to start."""
    return pb.StartInstanceRequest(
        instance_id=one.instance_id,
        deployment=deployment.name,
        source=deployment.spec.source,
        engine=deployments.engine_message(deployment.spec.engine),
        kv_bytes=one.kv_bytes,
        identity=deployment.model.identity,
        private_bytes=one.private_bytes,
        peers=peers_message(helpers.givers),
        lenders=map(_lender, helpers.loan.lenders if helpers.loan else ()),
        forms=map(_form, helpers.forms),
    )


def _form(one: FormGivers) -> pb.FormPeers:
    return pb.FormPeers(form=one.form, peers=peers_message(one.givers))


def _lender(one: Lender) -> pb.Lender:
    return pb.Lender(peer=pb.Peer(node_id=one.node_id, address=one.address), share=one.share)


def migration_news(response: pb.StartMigrationResponse) -> News:
    """What a node says of a generation that it moves."""
    request_id = response.request_id
    match response.WhichOneof("event"):
        case "progress":
            one = response.progress
            return Round(request_id, one.round, one.computed_tokens, one.gap_tokens)
        case "done":
            done = response.done
            times = common.seconds(done.duration), common.seconds(done.cutover)
            cache = cache_move(done.cache)
            return Moved(request_id, done.rounds, done.tokens, *times, done.gap_tokens, cache)
        case "failure":
            failure = response.failure
            error = errors.make_error(failure.code, failure.reason, failure.message)
            return Stayed(request_id, error)
        case _:
            return Ended(request_id)


def step(response: pb.StartInstanceResponse, node_id: str) -> Loading | Ready:
    """How far a start is, or its end."""
    if response.HasField("ready"):
        return _ready(response.ready, node_id)
    return common.loading(response.loading)


def _ready(message: pb.InstanceReady, node_id: str) -> Ready:
    return Ready(
        instance=reports.instance(message.instance, node_id),
        phases=generations.phases(message.phases),
        from_tier=common.tier(message.from_tier),
        model=deployments.model_info(message.model),
        weights_arriving=message.weights_arriving,
    )
