"""Bounds of what callers give: durations, moments, counts and names, checked where they come in.

What is within them can be added up, kept, and written into any message again.
"""

import math
import re
from collections.abc import Sequence
from enum import IntEnum
from typing import Final, Protocol, TypeVar

from sllm.errors import InvalidArgument

LONGEST: Final = 10 * 365 * 24 * 3600.0
"""Seconds: ten years. Whoever means "for ever" has another way to say so, or takes these."""
LATEST: Final = 253_402_300_799
"""Seconds since the epoch: the end of the year 9999, the last moment of a Timestamp."""
LARGEST: Final = 2**53
"""Bytes, or tokens: what a float still counts one by one."""
MAX_STOPS: Final = 16
"""Stop strings of a request."""
MAX_LOGPROBS: Final = 20
"""Alternatives that are told of for each token."""
MAX_LINGER: Final = 3600.0
"""Seconds for which a generation goes on without a reader, at most."""
MAX_CONCURRENCY: Final = 4096
"""Requests that one instance works on at once, at most."""
MAX_TENSOR_PARALLEL: Final = 64
"""Devices of one instance, at most."""
MAX_REPLICAS: Final = 1024
"""Instances of one deployment, at most."""
MAX_ADAPTERS: Final = 1024
"""Adapters that one instance has at once, at most."""
MAX_ADAPTER_RANK: Final = 512
"""That any of them may have, at most."""
MAX_NAME: Final = 256
"""Characters of what names a request, a node, an instance or a hold."""

MAX_PORT: Final = 65_535

_ZONE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")

_USER: Final = re.compile(r"//[^/]*@")
"""Of a URL, before its host. A revision of the hub's comes after one more slash."""
_ADDRESS: Final = re.compile(r"unix:.+|(?:dns:///)?[^\s/\0]+:(?P<port>\d{1,5})")

Member = TypeVar("Member", bound=IntEnum)


class Time(Protocol):
    """A Duration or a Timestamp."""

    @property
    def seconds(self) -> int:
        """Whole ones."""

    @property
    def nanos(self) -> int:
        """What is left of one, in billionths."""


def duration(value: Time, what: str, *, most: float = LONGEST) -> float:
    """Seconds of a Duration that may be zero.

    Raises:
        errors.InvalidArgument: It is negative, or longer than `most` seconds.
    """
    seconds = value.seconds + value.nanos / 1e9
    if not 0 <= seconds <= most:
        raise InvalidArgument(f"{what} must be from 0 to {most:g} s, it is {seconds:g} s")
    return seconds


def positive_duration(value: Time, what: str, *, most: float = LONGEST) -> float:
    """Seconds of a Duration that may not be zero.

    Raises:
        errors.InvalidArgument: It is not above zero, or longer than `most` seconds.
    """
    seconds = duration(value, what, most=most)
    if not seconds:
        raise InvalidArgument(f"{what} must be above 0 s")
    return seconds


def moment(value: Time, what: str) -> float:
    """Seconds since the epoch of a Timestamp.

    Raises:
        errors.InvalidArgument: It lies before 1970 or after 9999.
    """
    seconds = value.seconds + value.nanos / 1e9
    if not 0 <= seconds <= LATEST:
        raise InvalidArgument(f"{what} must lie between 1970 and 9999, not at {seconds:g} s")
    return seconds


def count(value: int, what: str, *, least: int = 0, most: int = LARGEST) -> int:
    """A number of bytes, tokens, requests or instances.

    Raises:
        errors.InvalidArgument: It is less than `least`, or more than `most`.
    """
    if not least <= value <= most:
        raise InvalidArgument(f"{what} must be from {least} to {most}, it is {value}")
    return value


def rate(value: float, what: str) -> float:
    """A number of bytes per second, or the like.

    Raises:
        errors.InvalidArgument: It is negative or no finite number.
    """
    if not (math.isfinite(value) and value >= 0):
        raise InvalidArgument(f"{what} must be finite and not negative, it is {value}")
    return value


def member(value: int, kind: type[Member], what: str) -> Member:
    """A member of an enum of the protocol.

    Raises:
        errors.InvalidArgument: It is none: it is not set, or a newer version's.
    """
    if value not in kind._value2member_map_:
        known = ", ".join(f"{one.name} ({one.value})" for one in kind)
        raise InvalidArgument(f"{what} {value} is unknown; known: {known}")
    return kind(value)


def one_of(value: int, members: Sequence[Member], what: str) -> Member:
    """One of some members of an enumeration.

    Raises:
        InvalidArgument: It is none of them.
    """
    for one in members:
        if value == one:
            return one
    *others, last = [f"{one.name} ({one.value})" for one in members]
    raise InvalidArgument(f"{what} must be {', '.join(others)} or {last}, not {value}")


def address(value: str, what: str) -> str:
    """Where a gRPC server is: host:port, or unix:PATH.

    gRPC itself would take a port modulo 65536, and that of HTTPS where none is given.

    Raises:
        errors.InvalidArgument: It is no such address.
    """
    found = _ADDRESS.fullmatch(value)
    if found is None or not 0 < int(found["port"] or 1) <= MAX_PORT:
        raise InvalidArgument(f"{what} must be host:port, it is {value!r}")
    return value


def addresses(value: str, what: str) -> str:
    """Where one or several gRPC servers are: addresses as of `address`, separated by commas.

    Raises:
        errors.InvalidArgument: One of them is none.
    """
    return ",".join(address(one.strip(), what) for one in value.split(","))


def name(value: str, what: str) -> str:
    """What somebody has chosen to name something by; it may be empty.

    Raises:
        errors.InvalidArgument: It is too long.
    """
    if len(value) > MAX_NAME:
        raise InvalidArgument(f"{what} may have {MAX_NAME} characters, it has {len(value)}")
    return value


def zone(value: str, what: str) -> str:
    """The name of a zone, as cloud providers give them; it may be empty.

    Raises:
        errors.InvalidArgument: It is none.
    """
    if value and not _ZONE.fullmatch(value):
        raise InvalidArgument(
            f"{what} must be 1-63 of [A-Za-z0-9._-], beginning with a letter or digit, it is "
            f"{value[:MAX_NAME]!r}"
        )
    return value


def check_output(
    max_tokens: int | None,
    logprobs: int | None,
    stop: Sequence[str],
    prompt_logprobs: int | None = None,
) -> None:
    """What a request may ask of its output, wherever it comes in.

    Raises:
        errors.InvalidArgument: It asks for no token, for too many alternatives, or to stop at too
            many strings, or at an empty one.
    """
    if max_tokens is not None:
        count(max_tokens, "max_tokens", least=1)
    if logprobs is not None:
        count(logprobs, "logprobs", most=MAX_LOGPROBS)
    if prompt_logprobs is not None:
        count(prompt_logprobs, "prompt_logprobs", most=MAX_LOGPROBS)
    if len(stop) > MAX_STOPS or not all(stop):
        raise InvalidArgument(f"stop must be at most {MAX_STOPS} strings, none of them empty")


def without_secrets(source: str) -> str:
    """What was given as a source, as far as it may be repeated: no user, no password, no query."""
    return _USER.sub("//", re.split(r"[?#]", source, maxsplit=1)[0], count=1)
