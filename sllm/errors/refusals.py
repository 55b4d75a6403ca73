"""Errors that trying again does not mend: what was asked has to change, or what is there."""

from sllm.errors.base import Code, SllmError


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


class InvalidImage(InvalidRequest):
    """An image is none, is damaged, or is out of its bounds."""

    reason = "INVALID_IMAGE"


class InvalidSampling(InvalidRequest):
    """A sampling parameter is out of its bounds."""

    reason = "INVALID_SAMPLING"


class InvalidStructuredOutput(InvalidRequest):
    """The form that a text is to have cannot be read, or is one that cannot be had."""

    reason = "INVALID_STRUCTURED_OUTPUT"


class InvalidChatTemplate(InvalidRequest):
    """A chat template is no Jinja."""

    reason = "INVALID_CHAT_TEMPLATE"


class InvalidSource(InvalidRequest):
    """A source is not one that this version can read, or lacks what a model needs."""

    reason = "INVALID_SOURCE"


class SourceNotAllowed(SllmError):
    """A source is none of those that the node's operator lets it read."""

    code = Code.PERMISSION_DENIED
    reason = "SOURCE_NOT_ALLOWED"


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


class BatchNotFound(NotFound):
    """There is no such batch."""

    reason = "BATCH_NOT_FOUND"


class CheckpointNotFound(NotFound):
    """The node does not hold this checkpoint."""

    reason = "CHECKPOINT_NOT_FOUND"


class KeyNotFound(NotFound):
    """There is no such key."""

    reason = "KEY_NOT_FOUND"


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


class UnsupportedAdapter(Unsupported):
    """An adapter is none of the kind that is served, or does not fit its base."""

    reason = "UNSUPPORTED_ADAPTER"


class AdaptersLeft(Unsupported):
    """A deployment cannot go, or become another model, while there are adapters over it."""

    reason = "ADAPTERS_LEFT"


class NoChatTemplate(Unsupported):
    """Messages were given to a model that has no chat template."""

    reason = "NO_CHAT_TEMPLATE"


class ModelTooLarge(Unsupported):
    """No node is large enough for the model, even when empty."""

    reason = "MODEL_TOO_LARGE"


class CheckpointLeased(Unsupported):
    """A checkpoint cannot be evicted while something uses it."""

    reason = "CHECKPOINT_LEASED"


class DeviceUnavailable(Unsupported):
    """A node cannot use the accelerator that it is to use."""

    reason = "DEVICE_UNAVAILABLE"


class EngineUnavailable(Unsupported):
    """No node has the engine that a deployment is to run on, or the node that was asked has not."""

    reason = "ENGINE_UNAVAILABLE"


class NotServed(Unsupported):
    """The server does not know the call, or a deployment's model is for something else."""

    reason = "NOT_SERVED"


class ImageUrlRefused(Unsupported):
    """A deployment does not allow images to be fetched from there."""

    reason = "IMAGE_URL_REFUSED"


class SourceChanged(Unsupported):
    """A source is not what it was: its weights, or the files that shape what is made of them."""

    reason = "SOURCE_CHANGED"


class StaleTerm(Unsupported):
    """The order is of a control plane that leads no more; the node has heard of a later one."""

    reason = "STALE_TERM"


class BatchUnderWay(Unsupported):
    """The batch has not ended."""

    reason = "BATCH_UNDER_WAY"


class NodeDraining(Unsupported):
    """The node is being drained and takes nothing new."""

    reason = "NODE_DRAINING"


class NodeNeeded(Unsupported):
    """Without the node, deployments that have requests could not be served."""

    reason = "NODE_NEEDED"


class Unauthenticated(SllmError):
    """The caller has not said who it is, or cannot be believed; it is not told which."""

    code = Code.UNAUTHENTICATED
    reason = "UNAUTHENTICATED"


class PermissionDenied(SllmError):
    """The caller is known, and may not do this."""

    code = Code.PERMISSION_DENIED
    reason = "PERMISSION_DENIED"
