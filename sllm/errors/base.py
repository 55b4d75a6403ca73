"""What all errors have in common: a canonical code, a reason, and what to do about it."""

from collections.abc import Mapping
from enum import IntEnum
from typing import ClassVar

DOMAIN = "serverlessllm"
"""`ErrorInfo.domain` of every error here."""


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
        super().__init__(message)
        self.message = message
        self.metadata = dict(metadata or {})
        """Facts for programs: `ErrorInfo.metadata`."""
        self.retry_after = retry_after
        """Seconds after which another try may help, if waiting helps: `RetryInfo`."""
