"""What all errors have in common: a canonical code, a reason, and what to do about it."""

import copy
import re
from collections.abc import Mapping
from enum import IntEnum
from typing import ClassVar, Final, Self

DOMAIN = "serverlessllm"
"""`ErrorInfo.domain` of every error here."""

_MESSAGE_BYTES: Final = 1_200
_VALUE_BYTES: Final = 300
"""A status travels in HTTP/2 headers, its message twice, and most clients refuse more than 8 KiB of
them: then the caller would read RESOURCE_EXHAUSTED instead of what was wrong."""
_LONG_WORD: Final = re.compile(rf"\S{{{_VALUE_BYTES + 1},}}")


class Code(IntEnum):
    """The canonical gRPC codes in use."""

    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class SllmError(Exception):
    """Base of all errors of sllm. `str(error)` says what was wrong and what to do."""

    code: ClassVar[Code] = Code.INTERNAL
    reason: ClassVar[str] = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        retry_after: float | None = None,
    ) -> None:
        self.message = _bounded(message)
        """What a caller gave is in it only as far as it can be read: the middle of what is long is
        left out, in words and in the whole."""
        super().__init__(self.message)
        self.metadata = {key: _cut(value, _VALUE_BYTES) for key, value in (metadata or {}).items()}
        """Facts for programs: `ErrorInfo.metadata`."""
        self.retry_after = retry_after
        """Seconds after which another try may help, if waiting helps: `RetryInfo`."""

    def for_one(self) -> Self:
        """The same error for one of many whom it ends, each with a traceback of its own."""
        own = copy.copy(self)
        own.__cause__ = self
        return own


def _bounded(message: str) -> str:
    words = _LONG_WORD.sub(lambda word: _cut(word[0], _VALUE_BYTES), message)
    return _cut(words, _MESSAGE_BYTES)


def _cut(text: str, size: int) -> str:
    """`text` in at most `size` bytes of UTF-8: its beginning and its end.

    What UTF-8 cannot say, as in names of files that are none, is written as escapes.
    """
    encoded = text.encode(errors="backslashreplace")
    if len(encoded) <= size:
        return encoded.decode()
    half = (size - len("…".encode())) // 2
    return f"{encoded[:half].decode(errors='ignore')}…{encoded[-half:].decode(errors='ignore')}"
