"""Bodies of requests: of a bounded size, within a bounded time, in the form that is due."""

import asyncio
import json
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.types import Receive

from sllm import errors
from sllm.gateway.failures import Refusal, invalid

Body = TypeVar("Body", bound=BaseModel)

_TOLD: Final = 200
"""Letters of a value that an error repeats."""


REFUSED: Final = "refused"
"""The kind of error of a field that is known, and not served."""


class Gone(Exception):
    """The caller has left."""


class Fields(BaseModel):
    """Fields of a request. Those that are unknown are refused: none is ignored unsaid."""

    model_config = ConfigDict(extra="forbid", strict=False, allow_inf_nan=False)


async def read(receive: Receive, most: int, seconds: float) -> bytes:
    """The whole body.

    Raises:
        Refusal: It is larger than `most` bytes, or has not come within `seconds`.
        Gone: The caller has left before its end.
    """
    parts: list[bytes] = []
    size, more = 0, True
    try:
        async with asyncio.timeout(seconds):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Gone
                part: bytes = message.get("body", b"")
                more = bool(message.get("more_body", False))
                size += len(part)
                check_size(size, most)
                parts.append(part)
    except TimeoutError as error:
        late = errors.DeadlineExceeded(f"the body has not come within {seconds:g} s")
        raise Refusal(408, late) from error
    return b"".join(parts)


def check_size(size: int, most: int) -> None:
    """Refuses a body that is too large.

    Raises:
        Refusal: It is.
    """
    if size > most:
        raise Refusal(413, errors.InvalidArgument(f"the body may have {most} bytes, not more"))


def parsed(body: bytes) -> dict[str, Any]:
    """The JSON object of a body.

    Raises:
        errors.InvalidArgument: It is none.
    """
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise invalid(f"the body is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise invalid(f"the body must be a JSON object, not {type(found).__name__}")
    return found


def checked(kind: type[Body], body: dict[str, Any]) -> Body:
    """A body as its fields.

    Raises:
        errors.InvalidArgument: A field is unknown, is missing, or has another form.
    """
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        raise _told(error.errors(include_url=False)[0]) from error


def _told(found: Any) -> errors.InvalidArgument:
    """The first thing that is wrong with a body, in words."""
    kind, place, said = found["type"], [*found["loc"]], found["msg"]
    value = f", not {found['input']!r:.{_TOLD}}"
    if kind == REFUSED:
        place.append(found["ctx"]["name"])
    if kind == "extra_forbidden":
        said = "there is no such field"
    if kind in (REFUSED, "extra_forbidden", "missing"):
        value = ""
    name = ".".join(map(str, place))
    return invalid(f"{name}: {said}{value}", name)
