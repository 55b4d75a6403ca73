"""From a status of the wire back to the class of its reason."""

from collections.abc import Mapping

from sllm.errors.base import Code, SllmError
from sllm.errors.failures import (
    Cancelled,
    CheckpointCorrupt,
    DeadlineExceeded,
    Internal,
    NoCapacity,
    Unreachable,
)
from sllm.errors.refusals import InvalidArgument, PermissionDenied, Unauthenticated


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
    Code.PERMISSION_DENIED: PermissionDenied,
    Code.UNAUTHENTICATED: Unauthenticated,
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
