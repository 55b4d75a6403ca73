"""What obstore and the hub's client raise, as errors that say what to do; no secrets in them."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from obstore import exceptions

from sllm.errors import (
    InvalidSource,
    SllmError,
    SourceForbidden,
    SourceNotFound,
    SourceUnavailable,
)

_MAX_CAUSE = 300
_STATUS = re.compile(r"status code: (\d{3})")
_URL = re.compile(r"(\w+://)(?:[^\s/@\"]*@)?([^\s?\"]*)(\?[^\s\"]*)?")


@contextmanager
def typed_failures(place: str) -> Iterator[None]:
    """Turns obstore's exceptions into errors that name `place`, a URL without secrets."""
    try:
        yield
    except (exceptions.BaseError, OSError, ValueError) as error:
        # Its first line is in the message; in a traceback its URLs would show what is secret.
        raise _typed(place, error) from None


def _typed(place: str, error: Exception) -> SllmError:
    status = _status(error)
    cause = cause_of(error)
    if status == 404 or isinstance(error, FileNotFoundError):
        return SourceNotFound(f"{place} does not exist: {cause}")
    if status in (401, 403) or isinstance(
        error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError
    ):
        return forbidden(place, cause)
    if isinstance(error, exceptions.NotSupportedError):
        return InvalidSource(f"{place}: its server gives whole files only, but ranges are needed")
    return SourceUnavailable(
        f"{place} cannot be read now: {cause}; see that its server works, and try again"
    )


def forbidden(place: str, cause: str) -> SourceForbidden:
    """The error for a source that one may not read."""
    return SourceForbidden(
        f"{place} may not be read: {cause}; give the node credentials that may, in the environment "
        "that the service's own tools use"
    )


def _status(error: Exception) -> int | None:
    """The exceptions that stand for several statuses tell them in their text alone."""
    found = _STATUS.search(str(error))
    return int(found[1]) if found else None


def cause_of(error: Exception) -> str:
    """The first line of what a library says, without what may be secret in URLs."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return _URL.sub(r"\1\2", lines[0])[:_MAX_CAUSE].rstrip(" .:")
