"""Errors as HTTP tells them: a status, and OpenAI's or Anthropic's error object."""

import json
import math
from collections.abc import Mapping
from typing import Any, Final

from sllm import errors
from sllm.errors import Code

_STATUSES: Final[Mapping[Code, int]] = {
    Code.CANCELLED: 499,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.DATA_LOSS: 500,
    Code.UNAUTHENTICATED: 401,
}
_RETRY_SECONDS: Final = 1.0
"""After which what may succeed later is tried again, where nobody knows better."""
_OPENAI: Final = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_ANTHROPIC: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class Refusal(Exception):
    """An error that HTTP has a status of its own for."""

    def __init__(self, status: int, error: errors.SllmError) -> None:
        super().__init__(error.message)
        self.status = status
        self.error = error


def invalid(message: str, param: str | None = None) -> errors.InvalidArgument:
    """A field that cannot be served as it is; `param` names it."""
    return errors.InvalidArgument(message, metadata={"param": param} if param else None)


def status_of(error: errors.SllmError) -> int:
    """The HTTP status of an error."""
    return _STATUSES.get(error.code, 500)


def retry_after(error: errors.SllmError) -> float | None:
    """Seconds after which another try may help. None: it does not."""
    if error.retry_after is not None:
        return error.retry_after
    return _RETRY_SECONDS if status_of(error) in (429, 503) else None


def headers(error: errors.SllmError, status: int) -> dict[str, str]:
    """What goes with an error beside its object."""
    found = {"content-type": "application/json"}
    seconds = retry_after(error)
    if seconds is not None and status in (429, 503):
        found["retry-after"] = str(max(1, math.ceil(seconds)))
    return found


def openai_error(error: errors.SllmError, status: int) -> dict[str, Any]:
    """OpenAI's error object; its code is the reason."""
    kind = _OPENAI.get(status, "server_error" if status >= 500 else "invalid_request_error")
    param = error.metadata.get("param")
    body = {"message": error.message, "type": kind, "param": param, "code": error.reason}
    return {"error": body}


def anthropic_error(error: errors.SllmError, status: int, request_id: str) -> dict[str, Any]:
    """Anthropic's error object; the reason is its code."""
    kind = _ANTHROPIC.get(status, "api_error" if status >= 500 else "invalid_request_error")
    body = {"type": kind, "message": error.message, "code": error.reason}
    return {"type": "error", "error": body, "request_id": request_id}


def encoded(body: Mapping[str, Any]) -> bytes:
    """JSON, in UTF-8."""
    return json.dumps(body).encode()
