"""Errors of work that was begun, or that there is no room or nobody for."""

from sllm.errors.base import Code, SllmError


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


class TenantLimit(SllmError):
    """A tenant has what it may have."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "TENANT_LIMIT"


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


class ImageUnavailable(Unavailable):
    """An image cannot be fetched from where its URL leads to."""

    reason = "IMAGE_UNAVAILABLE"


class CheckpointUnreadable(Unavailable):
    """A node cannot read a checkpoint's file now, which says nothing of what is in it."""

    reason = "CHECKPOINT_UNREADABLE"


class DeploymentFailed(Unavailable):
    """A deployment's checkpoint could not be brought to any node."""

    reason = "DEPLOYMENT_FAILED"


class DeviceFailed(Unavailable):
    """An accelerator has failed while it was in use."""

    reason = "DEVICE_FAILED"


class ShuttingDown(Unavailable):
    """The server is going down and takes nothing new."""

    reason = "SHUTTING_DOWN"


class StateUnavailable(Unavailable):
    """What has to be stored cannot be now: the control plane's disk is full, or its file locked."""

    reason = "STATE_UNAVAILABLE"


class NotLeader(Unavailable):
    """This control plane leads no more, or never did: another one is to be asked."""

    reason = "NOT_LEADER"


class NoLeader(Unavailable):
    """Of several control planes none leads now; one will soon."""

    reason = "NO_LEADER"


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
