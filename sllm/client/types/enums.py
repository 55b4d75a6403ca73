"""The protocol's enums as strings: they compare, print and turn into JSON as their names.

`UNKNOWN` stands for a value that this version does not know, from a newer server.
"""

from enum import StrEnum


class Tier(StrEnum):
    """A place on or behind a node that holds a checkpoint's chunks."""

    UNKNOWN = "UNKNOWN"
    REMOTE = "REMOTE"
    """The source that the checkpoint came from."""
    SSD = "SSD"
    """The node's checkpoint directory."""
    DRAM = "DRAM"
    """The node's pool of memory chunks."""
    DEVICE = "DEVICE"
    """The memory that kernels read weights from; on a CPU node the pool itself."""
    PEER = "PEER"
    """Other nodes that have the checkpoint."""


class DeploymentState(StrEnum):
    """Where a deployment's checkpoint is on its way."""

    UNKNOWN = "UNKNOWN"
    PREPARING = "PREPARING"
    """Its checkpoint is on its way to a node."""
    AVAILABLE = "AVAILABLE"
    """A node holds its checkpoint."""
    FAILED = "FAILED"
    """The checkpoint could not be brought to any node."""


class BatchState(StrEnum):
    """How far a batch is."""

    UNKNOWN = "UNKNOWN"
    RUNNING = "RUNNING"
    """Some of its requests wait, or are under way."""
    ENDED = "ENDED"
    """All of them have ended."""
    CANCELLED = "CANCELLED"


class CallerRole(StrEnum):
    """What a key may do. Each may do all that those before it may."""

    USER = "USER"
    """Uses what is deployed."""
    OPERATOR = "OPERATOR"
    """Deploys, pins, prefetches, and sees the cluster."""
    ADMIN = "ADMIN"
    """Drains nodes, migrates, and makes keys."""
    UNKNOWN = "UNKNOWN"
    """A newer control plane's, of which this client has no name."""


class InstanceState(StrEnum):
    """The life of an instance, in order."""

    UNKNOWN = "UNKNOWN"
    STARTING = "STARTING"
    READY = "READY"
    DRAINING = "DRAINING"
    """Takes no new requests; ends when those under way have."""
    GONE = "GONE"


class FinishReason(StrEnum):
    """Why a generation ended."""

    UNKNOWN = "UNKNOWN"
    STOP = "STOP"
    """The model ended its text, or a stop string or stop token was met."""
    LENGTH = "LENGTH"
    """`max_tokens`, or the end of the model's context, was reached."""
    TOOL_CALLS = "TOOL_CALLS"
    """As STOP, and the model has called tools."""


class MigrationReason(StrEnum):
    """Why a generation has gone on elsewhere."""

    UNKNOWN = "UNKNOWN"
    FAILOVER = "FAILOVER"
    """The instance or node that served it was lost, or has given it up."""
    OPERATOR = "OPERATOR"
    """An operator wanted it."""
    DRAIN = "DRAIN"
    """Its node is being drained, or is about to go down."""
    PLACEMENT = "PLACEMENT"
    """It has made room for another deployment."""


class MoveWay(StrEnum):
    """How the KV cache of a generation comes to where it goes on."""

    UNKNOWN = "UNKNOWN"
    TOKENS = "TOKENS"
    """The destination computes it of the tokens."""
    PAGES = "PAGES"
    """The destination is given its whole pages, and computes the rest."""


class MigrationOutcome(StrEnum):
    """What has come of a generation that was to move."""

    MOVED = "MOVED"
    """It goes on at the destination."""
    STAYED = "STAYED"
    """It goes on where it was."""
    ENDED = "ENDED"
    """It had ended before it could move."""


class LoadPhase(StrEnum):
    """What kind of work a start is doing."""

    UNKNOWN = "UNKNOWN"
    IMPORT = "IMPORT"
    """From the source to SSD."""
    READ = "READ"
    """From SSD to the pool."""
    COPY = "COPY"
    """From the pool to the device."""
    INIT = "INIT"
    """Worker, module and engine."""


class PhaseKind(StrEnum):
    """A part of the way from a request to its first token."""

    UNKNOWN = "UNKNOWN"
    QUEUED = "QUEUED"
    """Waiting in the router: for a decision, for room, or for a slot in an instance."""
    PLACED = "PLACED"
    """Deciding where to start."""
    IMPORT = "IMPORT"
    """Bringing the checkpoint from its source into the node's SSD tier."""
    FETCH_PEERS = "FETCH_PEERS"
    """Fetching chunks of it from other nodes, beside that."""
    READ_SSD = "READ_SSD"
    """Reading chunks from SSD into the pool."""
    DEVICE_COPY = "DEVICE_COPY"
    """Copying chunks from the pool to the device."""
    WORKER_START = "WORKER_START"
    """Forking the worker until it answers."""
    PREPARE = "PREPARE"
    """Loading the tokenizer and preparing the model's classes in the worker."""
    WARM_UP = "WARM_UP"
    """What a first use of the device takes, beside the load: a part of PREPARE."""
    ATTACH = "ATTACH"
    """Mapping the chunks and building the module over them."""
    ENGINE_INIT = "ENGINE_INIT"
    """Creating the engine: KV cache, scheduler, warm-up."""
    PREFILL = "PREFILL"
    """From the engine's taking the request to its first token."""


class PlacementAction(StrEnum):
    """What placement would do with one more request."""

    UNKNOWN = "UNKNOWN"
    REUSE = "REUSE"
    """A ready instance has a free slot."""
    JOIN = "JOIN"
    """An instance is on its way that will have a slot."""
    START = "START"
    """A new instance is started, once idle ones have ended where room is short."""
    MIGRATE_THEN_START = "MIGRATE_THEN_START"
    """The same, once running instances have been migrated away."""
    WAIT = "WAIT"
    """Nothing can be done now."""
