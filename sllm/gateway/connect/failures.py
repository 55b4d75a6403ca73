"""Errors as Connect and gRPC-Web tell them, with the code, message and details of gRPC."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import grpc
from connectrpc.code import Code
from connectrpc.errors import ConnectError, ErrorDetail
from google.protobuf import any_pb2, json_format
from google.rpc import error_details_pb2
from protobuf.wkt import Any as WireAny
from protobuf.wkt import Struct

from sllm import errors, handlers, statuses

_NAMES: Final = {"CANCELLED": "CANCELED"}
_CODES: Final = {
    status.value[0]: Code[_NAMES.get(status.name, status.name)]
    for status in grpc.StatusCode
    if status is not grpc.StatusCode.OK
}
_KNOWN: Final = (error_details_pb2.ErrorInfo, error_details_pb2.RetryInfo)


class _Detail(ErrorDetail):
    """A detail of a status, which JSON tells in words beside its bytes."""

    def __init__(self, detail: any_pb2.Any) -> None:
        super().__init__(WireAny(type_url=detail.type_url, value=detail.value))
        self._words = _words(detail)

    def value(self, *_: Any) -> Any:
        """What a reader of JSON is shown."""
        return self._words


def _words(detail: any_pb2.Any) -> Any:
    for kind in _KNOWN:
        if detail.Is(kind.DESCRIPTOR):
            message = kind.FromString(detail.value)
            return Struct.from_json(json_format.MessageToJson(message, indent=None))
    return None


def to_connect(error: errors.SllmError) -> ConnectError:
    """The same error for callers of Connect and gRPC-Web."""
    status = statuses.to_status(error)
    details = [_Detail(detail) for detail in status.details]
    return ConnectError(_CODES[status.code], status.message, details)


@contextmanager
def told(method: str, control_address: str) -> Iterator[None]:
    """Tells a caller of any failure inside; one that nobody has foreseen is logged."""
    try:
        yield
    except ConnectError:
        raise
    except grpc.aio.AioRpcError as error:
        raise to_connect(_from_rpc(error, control_address)) from error
    except Exception as error:
        raise to_connect(handlers.as_typed(error, method)) from error


def is_away(error: ConnectError) -> bool:
    """Whether it is the control plane that cannot be reached."""
    return isinstance(error.__cause__, grpc.aio.AioRpcError) and error.code is Code.UNAVAILABLE


def _from_rpc(error: grpc.aio.AioRpcError, control_address: str) -> errors.SllmError:
    typed = statuses.from_rpc_error(error)
    if isinstance(typed, errors.Unreachable) and statuses.is_of_transport(error):
        said = f"no connection to the control plane at {control_address}: {typed}"
        return errors.Unreachable(said)
    return typed
