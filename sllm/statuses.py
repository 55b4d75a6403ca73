"""Errors as the statuses of gRPC, or as messages within a stream, and as errors again.

A status of ours names its reason in an ErrorInfo of our domain. All others are of gRPC itself, or
of something that lies between, and their codes do not say what ours do: RESOURCE_EXHAUSTED of gRPC
is a message that is too large, and no want of capacity.
"""

import re
from typing import Final

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from serverlessllm.v1 import worker_service_pb2 as pb

from sllm import errors
from sllm.durations import to_duration, to_seconds

_CANCELLED_HERE: Final = "Locally cancelled by application!"
_REQUEST_TOO_LARGE: Final = re.compile("(CLIENT: Sent|SERVER: Received) message larger")


def to_status(error: errors.SllmError) -> status_pb2.Status:
    """The google.rpc.Status of an error: its code, message, ErrorInfo and RetryInfo."""
    info = error_details_pb2.ErrorInfo(
        reason=error.reason, domain=errors.DOMAIN, metadata=error.metadata
    )
    details = [info]
    if error.retry_after is not None:
        details.append(error_details_pb2.RetryInfo(retry_delay=to_duration(error.retry_after)))
    packed = [any_pb2.Any() for _ in details]
    for target, detail in zip(packed, details, strict=True):
        target.Pack(detail)
    return status_pb2.Status(code=error.code, message=error.message, details=packed)


def to_failure(error: errors.SllmError) -> pb.Failure:
    """The end of one of the requests of a multiplexed stream."""
    delay = None if error.retry_after is None else to_duration(error.retry_after)
    return pb.Failure(
        code=error.code,
        reason=error.reason,
        message=error.message,
        metadata=error.metadata,
        retry_after=delay,
    )


def from_failure(failure: pb.Failure) -> errors.SllmError:
    """Why one of the requests of a multiplexed stream has ended."""
    return errors.make_error(
        failure.code,
        failure.reason,
        failure.message,
        metadata=dict(failure.metadata),
        retry_after=to_seconds(failure.retry_after) if failure.HasField("retry_after") else None,
    )


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
    delay = to_seconds(retry.retry_delay) if retry.HasField("retry_delay") else None
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
        case grpc.StatusCode.UNIMPLEMENTED:
            return errors.NotServed(f"the server is of a version without this call: {said}")
        case _:
            return errors.Internal(
                f"the call ended with {code.name}: {said}. No server of sllm says so, but gRPC, or "
                "what lies between"
            )
