"""Bodies of requests: of a bounded size, within a bounded time, in the form that is due."""

import asyncio
import json
import re
import reprlib
from collections.abc import Callable
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.types import Receive

from sllm import errors
from sllm.gateway.failures import Refusal, invalid

Body = TypeVar("Body", bound=BaseModel)
Made = TypeVar("Made")

_TOLD: Final = 200
"""Letters of a value that an error repeats."""
_DEEPEST: Final = 100
"""Objects and lists within one another: more than schemas have, and what writers of JSON take."""
_INLINE_BYTES: Final = 32 * 1024
"""Up to this size a body is read within the event loop."""
_HALF_ESCAPED: Final = re.compile(rb"\\u[dD][89a-fA-F]")
"""Of a character of two UTF-16 units, or of what is none."""


REFUSED: Final = "refused"
"""The kind of error of a field that is known, and not served."""


_words: Final = reprlib.Repr()
"""Of large values it looks at a part alone."""


class Gone(Exception):
    """The caller has left."""


class Fields(BaseModel):
    """Fields of a request. Those that are unknown are refused: none is ignored unsaid."""

    model_config = ConfigDict(extra="forbid", strict=False, allow_inf_nan=False)


async def read(
    receive: Receive, most: int, seconds: float, hold: Callable[[int], None] = lambda _: None
) -> bytes:
    """The whole body; `hold` is told of the bytes that come, and may refuse them.

    Raises:
        Refusal: It is larger than `most` bytes, or has not come within `seconds`.
        Gone: The caller has left before its end.
    """
    # In one block that grows: the small ones that it comes in would be kept by the allocator.
    found, more = bytearray(), True
    try:
        async with asyncio.timeout(seconds):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Gone
                part: bytes = message.get("body", b"")
                more = bool(message.get("more_body", False))
                check_size(len(found) + len(part), most)
                hold(len(part))
                found += part
    except TimeoutError as error:
        late = errors.DeadlineExceeded(f"the body has not come within {seconds:g} s")
        raise Refusal(408, late) from error
    return bytes(found)


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
        errors.InvalidArgument: It is none, or is too deep, or has half a character.
    """
    try:
        found = json.loads(body.decode())
    except (ValueError, RecursionError) as error:
        raise invalid(f"the body is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise invalid(f"the body must be a JSON object, not {type(found).__name__}")
    if body.count(b"{") + body.count(b"[") > _DEEPEST:
        _check_depth(found)
    if _HALF_ESCAPED.search(body):
        _check_characters(found)
    return found


def _check_depth(found: dict[str, Any]) -> None:
    level: list[Any] = [found]
    for _ in range(_DEEPEST):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise invalid(f"the body is no JSON that is taken: it is more than {_DEEPEST} levels deep")


def _check_characters(found: dict[str, Any]) -> None:
    """Half a character is no text: nothing of it could be sent on, or back."""
    try:
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise invalid(f"the body has half a character, which UTF-8 has not: {error}") from error


async def beside(size: int, work: Callable[[], Made]) -> Made:
    """What comes of work on so many bytes; of many in a thread: others' streams go on meanwhile."""
    return work() if size <= _INLINE_BYTES else await asyncio.to_thread(work)


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
    value = f", not {_words.repr(found['input']):.{_TOLD}}"
    if kind == REFUSED:
        place.append(found["ctx"]["name"])
    if kind == "value_error":  # of a check of ours, which pydantic tells with a prefix of its own
        said = str(found["ctx"]["error"])
    if kind == "extra_forbidden":
        said = "there is no such field"
    if kind in (REFUSED, "extra_forbidden", "missing"):
        value = ""
    name = ".".join(map(str, place))
    return invalid(f"{name}: {said}{value}", name)
