"""Every error that crosses the wire, one class per reason.

SllmError
├── InvalidRequest          what was asked makes no sense, whatever the state of the cluster
│   ├── InvalidArgument     INVALID_ARGUMENT
│   ├── InvalidName         INVALID_NAME
│   ├── InvalidPrompt       INVALID_PROMPT
│   ├── InvalidSampling     INVALID_SAMPLING
│   ├── InvalidSource       INVALID_SOURCE
│   └── ContextExceeded     CONTEXT_EXCEEDED
├── NotFound
│   ├── DeploymentNotFound  DEPLOYMENT_NOT_FOUND
│   ├── InstanceNotFound    INSTANCE_NOT_FOUND
│   ├── NodeNotFound        NODE_NOT_FOUND
│   ├── PinNotFound         PIN_NOT_FOUND
│   ├── RequestNotFound     REQUEST_NOT_FOUND
│   ├── CheckpointNotFound  CHECKPOINT_NOT_FOUND
│   └── SourceNotFound      SOURCE_NOT_FOUND
├── Conflict
│   ├── DeploymentExists    DEPLOYMENT_EXISTS
│   └── RequestIdInUse      REQUEST_ID_IN_USE
├── Unsupported             what was asked cannot work here, until something is changed
│   ├── UnsupportedModel    UNSUPPORTED_MODEL
│   ├── NoChatTemplate      NO_CHAT_TEMPLATE
│   ├── ModelTooLarge       MODEL_TOO_LARGE
│   ├── CheckpointLeased    CHECKPOINT_LEASED
│   ├── NodeDraining        NODE_DRAINING
│   └── NodeNeeded          NODE_NEEDED
├── SourceForbidden         SOURCE_FORBIDDEN
├── CheckpointCorrupt       CHECKPOINT_CORRUPT
├── NoCapacity              NO_CAPACITY
├── QueueFull               QUEUE_FULL
├── Unavailable             the work may succeed when it is tried again
│   ├── NoNodes             NO_NODES
│   ├── NodeLost            NODE_LOST
│   ├── WorkerDied          WORKER_DIED
│   ├── StartFailed         START_FAILED
│   ├── SourceUnavailable   SOURCE_UNAVAILABLE
│   ├── CheckpointUnreadable  CHECKPOINT_UNREADABLE
│   ├── DeploymentFailed    DEPLOYMENT_FAILED
│   ├── ShuttingDown        SHUTTING_DOWN
│   └── Unreachable         UNREACHABLE
├── DeadlineExceeded        DEADLINE_EXCEEDED
├── Cancelled               CANCELLED
└── Internal                INTERNAL
"""

from collections.abc import Mapping
from enum import IntEnum
from typing import ClassVar

DOMAIN = "serverlessllm"
"""`ErrorInfo.domain` of every error here."""


class Code(IntEnum):
    """The canonical gRPC codes in use."""

    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15


class SllmError(Exception):
    """Base of all errors of sllm. `str(error)` says what was wrong and what to do."""

    code: ClassVar[Code] = Code.INTERNAL
    reason: ClassVar[str] = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = dict(metadata or {})
        """Facts for programs: `ErrorInfo.metadata`."""
        self.retry_after = retry_after
        """Seconds after which another try may help, if waiting helps: `RetryInfo`."""


class InvalidRequest(SllmError):
    """What was asked makes no sense, whatever the state of the cluster."""

    code = Code.INVALID_ARGUMENT


class InvalidArgument(InvalidRequest):
    """A field has a value that it may not have."""

    reason = "INVALID_ARGUMENT"


class InvalidName(InvalidRequest):
    """A deployment's name breaks the rules for names."""

    reason = "INVALID_NAME"


class InvalidPrompt(InvalidRequest):
    """The prompt is missing, empty or not in the model's vocabulary."""

    reason = "INVALID_PROMPT"


class InvalidSampling(InvalidRequest):
    """A sampling parameter is out of its bounds."""

    reason = "INVALID_SAMPLING"


class InvalidSource(InvalidRequest):
    """A source is not one that this version can read, or lacks what a model needs."""

    reason = "INVALID_SOURCE"


class ContextExceeded(InvalidRequest):
    """Prompt and max_tokens together do not fit the model's context."""

    reason = "CONTEXT_EXCEEDED"


class NotFound(SllmError):
    """What was named does not exist."""

    code = Code.NOT_FOUND


class DeploymentNotFound(NotFound):
    """No deployment has this name."""

    reason = "DEPLOYMENT_NOT_FOUND"


class InstanceNotFound(NotFound):
    """The node has no such instance, or no longer."""

    reason = "INSTANCE_NOT_FOUND"


class NodeNotFound(NotFound):
    """The cluster has no node of this id, or has lost it."""

    reason = "NODE_NOT_FOUND"


class PinNotFound(NotFound):
    """Nothing is pinned there."""

    reason = "PIN_NOT_FOUND"


class RequestNotFound(NotFound):
    """No request under way has this id."""

    reason = "REQUEST_NOT_FOUND"


class CheckpointNotFound(NotFound):
    """The node does not hold this checkpoint."""

    reason = "CHECKPOINT_NOT_FOUND"


class SourceNotFound(NotFound):
    """The source's directory or object does not exist."""

    reason = "SOURCE_NOT_FOUND"


class Conflict(SllmError):
    """What was asked contradicts what is there."""

    code = Code.ALREADY_EXISTS


class DeploymentExists(Conflict):
    """A deployment of this name serves another source."""

    reason = "DEPLOYMENT_EXISTS"


class RequestIdInUse(Conflict):
    """The request id was used for something else."""

    reason = "REQUEST_ID_IN_USE"


class Unsupported(SllmError):
    """What was asked cannot work here until something is changed."""

    code = Code.FAILED_PRECONDITION


class UnsupportedModel(Unsupported):
    """The engine does not know the architecture, or not in this form."""

    reason = "UNSUPPORTED_MODEL"


class NoChatTemplate(Unsupported):
    """Messages were given to a model that has no chat template."""

    reason = "NO_CHAT_TEMPLATE"


class ModelTooLarge(Unsupported):
    """No node is large enough for the model, even when empty."""

    reason = "MODEL_TOO_LARGE"


class CheckpointLeased(Unsupported):
    """A checkpoint cannot be evicted while something uses it."""

    reason = "CHECKPOINT_LEASED"


class NodeDraining(Unsupported):
    """The node is being drained and takes nothing new."""

    reason = "NODE_DRAINING"


class NodeNeeded(Unsupported):
    """Without the node, deployments that have requests could not be served."""

    reason = "NODE_NEEDED"


class SourceForbidden(SllmError):
    """The source's server wants other credentials than the node has."""

    code = Code.PERMISSION_DENIED
    reason = "SOURCE_FORBIDDEN"


class CheckpointCorrupt(SllmError):
    """Bytes are not what was written; names the file and, where known, the offset."""

    code = Code.DATA_LOSS
    reason = "CHECKPOINT_CORRUPT"


class NoCapacity(SllmError):
    """There is no room now, and none can be made."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "NO_CAPACITY"


class QueueFull(SllmError):
    """As many requests wait already as may."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "QUEUE_FULL"


class Unavailable(SllmError):
    """The work may succeed when it is tried again."""

    code = Code.UNAVAILABLE


class NoNodes(Unavailable):
    """The cluster has no node to do the work."""

    reason = "NO_NODES"


class NodeLost(Unavailable):
    """The node that did the work is gone."""

    reason = "NODE_LOST"


class WorkerDied(Unavailable):
    """The process that ran the model ended."""

    reason = "WORKER_DIED"


class StartFailed(Unavailable):
    """An instance could not be started."""

    reason = "START_FAILED"


class SourceUnavailable(Unavailable):
    """The source's server does not answer as it should, or its files change while they are read."""

    reason = "SOURCE_UNAVAILABLE"


class CheckpointUnreadable(Unavailable):
    """A node cannot read a checkpoint's file now, which says nothing of what is in it."""

    reason = "CHECKPOINT_UNREADABLE"


class DeploymentFailed(Unavailable):
    """A deployment's checkpoint could not be brought to any node."""

    reason = "DEPLOYMENT_FAILED"


class ShuttingDown(Unavailable):
    """The server is going down and takes nothing new."""

    reason = "SHUTTING_DOWN"


class Unreachable(Unavailable):
    """No connection to the server."""

    reason = "UNREACHABLE"


class DeadlineExceeded(SllmError):
    """The call's deadline has passed, or cannot be met."""

    code = Code.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"


class Cancelled(SllmError):
    """The work was cancelled."""

    code = Code.CANCELLED
    reason = "CANCELLED"


class Internal(SllmError):
    """A fault of sllm itself; the server's log has more."""

    reason = "INTERNAL"


def _leaves(cls: type[SllmError]) -> list[type[SllmError]]:
    children = cls.__subclasses__()
    return [leaf for child in children for leaf in _leaves(child)] if children else [cls]


BY_REASON: Mapping[str, type[SllmError]] = {cls.reason: cls for cls in _leaves(SllmError)}
"""The class of every reason."""

_BY_CODE: Mapping[Code, type[SllmError]] = {
    Code.CANCELLED: Cancelled,
    Code.DEADLINE_EXCEEDED: DeadlineExceeded,
    Code.INVALID_ARGUMENT: InvalidArgument,
    Code.UNAVAILABLE: Unreachable,
    Code.RESOURCE_EXHAUSTED: NoCapacity,
    Code.DATA_LOSS: CheckpointCorrupt,
}


def make_error(
    code: int,
    reason: str,
    message: str,
    *,
    metadata: Mapping[str, str] | None = None,
    retry_after: float | None = None,
) -> SllmError:
    """The typed error of a status that came over the wire.

    A status without a known reason (gRPC's own, or a newer server's) gets its code's class.
    """
    cls = BY_REASON.get(reason)
    if cls is None:
        known = code in Code._value2member_map_
        cls = _BY_CODE.get(Code(code), Internal) if known else Internal
    return cls(message, metadata=metadata, retry_after=retry_after)
