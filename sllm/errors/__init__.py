"""Every error that crosses the wire, one class per reason.

A leaf stands beside the reason that other languages branch on; whoever catches a group, such as
`errors.Unavailable`, catches all below it.

SllmError
├── InvalidRequest          what was asked makes no sense, whatever the state of the cluster
│   ├── InvalidArgument     INVALID_ARGUMENT
│   ├── InvalidChatTemplate INVALID_CHAT_TEMPLATE
│   ├── InvalidImage        INVALID_IMAGE
│   ├── InvalidName         INVALID_NAME
│   ├── InvalidPrompt       INVALID_PROMPT
│   ├── InvalidSampling     INVALID_SAMPLING
│   ├── InvalidStructuredOutput  INVALID_STRUCTURED_OUTPUT
│   ├── InvalidSource       INVALID_SOURCE
│   └── ContextExceeded     CONTEXT_EXCEEDED
├── NotFound
│   ├── BatchNotFound       BATCH_NOT_FOUND
│   ├── DeploymentNotFound  DEPLOYMENT_NOT_FOUND
│   ├── InstanceNotFound    INSTANCE_NOT_FOUND
│   ├── NodeNotFound        NODE_NOT_FOUND
│   ├── PinNotFound         PIN_NOT_FOUND
│   ├── RequestNotFound     REQUEST_NOT_FOUND
│   ├── CheckpointNotFound  CHECKPOINT_NOT_FOUND
│   ├── KeyNotFound         KEY_NOT_FOUND
│   └── SourceNotFound      SOURCE_NOT_FOUND
├── Conflict
│   ├── DeploymentExists    DEPLOYMENT_EXISTS
│   └── RequestIdInUse      REQUEST_ID_IN_USE
├── Unsupported             what was asked cannot work here, until something is changed
│   ├── UnsupportedModel    UNSUPPORTED_MODEL
│   ├── UnsupportedAdapter  UNSUPPORTED_ADAPTER
│   ├── AdaptersLeft        ADAPTERS_LEFT
│   ├── NoChatTemplate      NO_CHAT_TEMPLATE
│   ├── ModelTooLarge       MODEL_TOO_LARGE
│   ├── CheckpointLeased    CHECKPOINT_LEASED
│   ├── DeviceUnavailable   DEVICE_UNAVAILABLE
│   ├── EngineUnavailable   ENGINE_UNAVAILABLE
│   ├── NotServed           NOT_SERVED
│   ├── ImageUrlRefused     IMAGE_URL_REFUSED
│   ├── SourceChanged       SOURCE_CHANGED
│   ├── BatchUnderWay       BATCH_UNDER_WAY
│   ├── StaleTerm           STALE_TERM
│   ├── NodeDraining        NODE_DRAINING
│   └── NodeNeeded          NODE_NEEDED
├── SourceForbidden         SOURCE_FORBIDDEN
├── SourceNotAllowed        SOURCE_NOT_ALLOWED
├── Unauthenticated         UNAUTHENTICATED
├── PermissionDenied        PERMISSION_DENIED
├── CheckpointCorrupt       CHECKPOINT_CORRUPT
├── NoCapacity              NO_CAPACITY
├── QueueFull               QUEUE_FULL
├── TenantLimit             TENANT_LIMIT
├── Unavailable             the work may succeed when it is tried again
│   ├── NoNodes             NO_NODES
│   ├── NodeLost            NODE_LOST
│   ├── WorkerDied          WORKER_DIED
│   ├── StartFailed         START_FAILED
│   ├── SourceUnavailable   SOURCE_UNAVAILABLE
│   ├── ImageUnavailable    IMAGE_UNAVAILABLE
│   ├── CheckpointUnreadable  CHECKPOINT_UNREADABLE
│   ├── DeploymentFailed    DEPLOYMENT_FAILED
│   ├── DeviceFailed        DEVICE_FAILED
│   ├── ShuttingDown        SHUTTING_DOWN
│   ├── StateUnavailable    STATE_UNAVAILABLE
│   ├── NotLeader           NOT_LEADER
│   ├── NoLeader            NO_LEADER
│   └── Unreachable         UNREACHABLE
├── DeadlineExceeded        DEADLINE_EXCEEDED
├── Cancelled               CANCELLED
└── Internal                INTERNAL
"""

from sllm.errors.base import (
    DOMAIN,
    Code,
    SllmError,
)
from sllm.errors.failures import (
    Cancelled,
    CheckpointCorrupt,
    CheckpointUnreadable,
    DeadlineExceeded,
    DeploymentFailed,
    DeviceFailed,
    ImageUnavailable,
    Internal,
    NoCapacity,
    NodeLost,
    NoLeader,
    NoNodes,
    NotLeader,
    QueueFull,
    ShuttingDown,
    SourceForbidden,
    SourceUnavailable,
    StartFailed,
    StateUnavailable,
    TenantLimit,
    Unavailable,
    Unreachable,
    WorkerDied,
)
from sllm.errors.reasons import (
    BY_REASON,
    make_error,
)
from sllm.errors.refusals import (
    AdaptersLeft,
    BatchNotFound,
    BatchUnderWay,
    CheckpointLeased,
    CheckpointNotFound,
    Conflict,
    ContextExceeded,
    DeploymentExists,
    DeploymentNotFound,
    DeviceUnavailable,
    EngineUnavailable,
    ImageUrlRefused,
    InstanceNotFound,
    InvalidArgument,
    InvalidChatTemplate,
    InvalidImage,
    InvalidName,
    InvalidPrompt,
    InvalidRequest,
    InvalidSampling,
    InvalidSource,
    InvalidStructuredOutput,
    KeyNotFound,
    ModelTooLarge,
    NoChatTemplate,
    NodeDraining,
    NodeNeeded,
    NodeNotFound,
    NotFound,
    NotServed,
    PermissionDenied,
    PinNotFound,
    RequestIdInUse,
    RequestNotFound,
    SourceChanged,
    SourceNotAllowed,
    SourceNotFound,
    StaleTerm,
    Unauthenticated,
    Unsupported,
    UnsupportedAdapter,
    UnsupportedModel,
)

__all__ = [
    "BY_REASON",
    "DOMAIN",
    "AdaptersLeft",
    "BatchNotFound",
    "BatchUnderWay",
    "Cancelled",
    "CheckpointCorrupt",
    "CheckpointLeased",
    "CheckpointNotFound",
    "CheckpointUnreadable",
    "Code",
    "Conflict",
    "ContextExceeded",
    "DeadlineExceeded",
    "DeploymentExists",
    "DeploymentFailed",
    "DeploymentNotFound",
    "DeviceFailed",
    "DeviceUnavailable",
    "EngineUnavailable",
    "ImageUnavailable",
    "ImageUrlRefused",
    "InstanceNotFound",
    "Internal",
    "InvalidArgument",
    "InvalidChatTemplate",
    "InvalidImage",
    "InvalidName",
    "InvalidPrompt",
    "InvalidRequest",
    "InvalidSampling",
    "InvalidSource",
    "InvalidStructuredOutput",
    "KeyNotFound",
    "ModelTooLarge",
    "NoCapacity",
    "NoChatTemplate",
    "NoLeader",
    "NoNodes",
    "NodeDraining",
    "NodeLost",
    "NodeNeeded",
    "NodeNotFound",
    "NotFound",
    "NotLeader",
    "NotServed",
    "PermissionDenied",
    "PinNotFound",
    "QueueFull",
    "RequestIdInUse",
    "RequestNotFound",
    "ShuttingDown",
    "SllmError",
    "SourceChanged",
    "SourceForbidden",
    "SourceNotAllowed",
    "SourceNotFound",
    "SourceUnavailable",
    "StaleTerm",
    "StartFailed",
    "StateUnavailable",
    "TenantLimit",
    "Unauthenticated",
    "Unavailable",
    "Unreachable",
    "Unsupported",
    "UnsupportedAdapter",
    "UnsupportedModel",
    "WorkerDied",
    "make_error",
]
