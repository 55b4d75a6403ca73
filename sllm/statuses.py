"""Errors as the statuses of gRPC, and statuses as errors again.

A status of ours names its reason in an ErrorInfo of our domain. All others are of gRPC itself, or
of something that lies between, and their codes do not say what ours do: RESOURCE_EXHAUSTED of gRPC
is a message that is too large, and no want of capacity.
"""

import re
from typing import Final

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from sllm import errors

_CANCELLED_HERE: Final = "Locally cancelled by application!"
_REQUEST_TOO_LARGE: Final = re.compile("(CLIENT: Sent|SERVER: Received) message larger")


def to_status(error: errors.SllmError) -> status_pb2.Status:
    """The google.rpc.Status of an error: its code, message, ErrorInfo and RetryInfo."""
    info = error_details_pb2.ErrorInfo(
        reason=error.reason, domain=errors.DOMAIN, metadata=error.metadata
    )
    details = [info]
    if error.retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = [any_pb2.Any() for _ in details]
    for target, detail in zip(packed, details, strict=True):
        target.Pack(detail)
    return status_pb2.Status(code=error.code, message=error.message, details=packed)


def from_rpc_error(error: grpc.aio.AioRpcError) -> errors.SllmError:
    """The typed error of a failed call."""
    return _of_ours(error) or _of_transport(error)


def is_of_transport(error: grpc.aio.AioRpcError) -> bool:
    """Whether a call ended without an answer of ours."""
    return _of_ours(error) is None


def _of_ours(error: grpc.aio.AioRpcError) -> errors.SllmError | None:
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in _details(error):
        detail.Unpack(info)
        detail.Unpack(retry)
    if info.domain != errors.DOMAIN:
        return None
    code: int = error.code().value[0]
    message = error.details() or error.code().name
    delay = retry.retry_delay.ToNanoseconds() / 1e9 if retry.HasField("retry_delay") else None
    metadata = dict(info.metadata)
    return errors.make_error(code, info.reason, message, metadata=metadata, retry_after=delay)


def _details(error: grpc.aio.AioRpcError) -> list[any_pb2.Any]:
    try:
        status = rpc_status.from_call(error)
    except ValueError:  # something between has given the call another code than its details have
        return []
    return list(status.details) if status else []


def _of_transport(error: grpc.aio.AioRpcError) -> errors.SllmError:
    code, said = error.code(), error.details() or ""
    match code:
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return errors.DeadlineExceeded(f"there was no answer before the deadline: {said}")
        case grpc.StatusCode.CANCELLED if said == _CANCELLED_HERE:
            return errors.Cancelled(said)
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED:
            return errors.Unreachable(said or "the connection was lost")
        case grpc.StatusCode.RESOURCE_EXHAUSTED if _REQUEST_TOO_LARGE.match(said):
            return errors.InvalidArgument(f"the request is larger than a message may be: {said}")
        case _:
            return errors.Internal(
                f"the call ended with {code.name}: {said}. No server of sllm says so, but gRPC, or "
                "what lies between"
            )
