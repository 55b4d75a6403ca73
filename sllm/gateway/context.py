"""What a request says beside its body: who it is, how urgent, and until when."""

import hashlib
import math
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sllm import errors
from sllm.gateway.failures import invalid

REQUEST_ID: Final = "x-request-id"
PRIORITY: Final = "x-sllm-priority"
AUTHORIZATION: Final = "authorization"
API_KEY: Final = "x-api-key"
"""Where Anthropic's clients show their key."""
DEADLINE: Final = "x-sllm-deadline"
KEEP_ALIVE: Final = "x-sllm-keep-alive"
MAX_ID: Final = 128
_ID: Final = re.compile(rf"[A-Za-z0-9._:=+@-]{{1,{MAX_ID}}}")
_DIGEST_BYTES: Final = 5


@dataclass(frozen=True, slots=True)
class Context:
    """One request's circumstances. Times are seconds."""

    request_id: str
    """As the caller has named it, or as it was named here."""
    named: bool
    """Whether the caller has: then it can come back to it."""
    priority: int = 0
    deadline: float | None = None
    """From now. None: as long as it takes."""
    keep_alive: float | None = None
    """That the instance stays at least. None: as its deployment says."""

    def generation_id(self, digest: str, part: int = 0) -> str:
        """The id of the generation of a part of a body of this digest.

        Of a request that the caller has named, a digest of the body is in it: programs pass an id
        on to all that they ask for meanwhile, and no answer may be taken for another's.
        """
        if not self.named:
            return f"{self.request_id}.{part}" if part else self.request_id
        return f"{self.request_id}.{digest}.{part}" if part else f"{self.request_id}.{digest}"


def key_of(headers: Mapping[str, str]) -> str:
    """The key that a caller shows, which the control plane judges; empty if it shows none."""
    scheme, _, shown = headers.get(AUTHORIZATION, "").partition(" ")
    if scheme.lower() != "bearer":
        shown = headers.get(API_KEY, "")
    shown = shown.strip()
    return shown if shown.isascii() and shown.isprintable() else ""


def digest(body: bytes) -> str:
    """Tells a body from others of its id."""
    return hashlib.blake2b(body, digest_size=_DIGEST_BYTES).hexdigest()


def named(headers: Mapping[str, str]) -> tuple[str, bool]:
    """The id of a request, and whether its caller has chosen it."""
    given = headers.get(REQUEST_ID, "")
    if _ID.fullmatch(given):
        return given, True
    return f"req_{uuid.uuid4().hex}", False


def context(headers: Mapping[str, str]) -> Context:
    """What headers say.

    Raises:
        errors.InvalidArgument: One of them is not what it should be.
    """
    if headers.get(REQUEST_ID) and not _ID.fullmatch(headers[REQUEST_ID]):
        raise invalid(
            f"{REQUEST_ID} may have {MAX_ID} characters, of letters, digits and ._:=+@-", REQUEST_ID
        )
    request_id, chosen = named(headers)
    priority = _number(headers, PRIORITY) or 0.0
    if priority != int(priority):
        raise invalid(f"{PRIORITY} must be a whole number, not {priority:g}", PRIORITY)
    deadline, keep_alive = _number(headers, DEADLINE), _number(headers, KEEP_ALIVE)
    if deadline is not None and deadline <= 0:
        raise errors.DeadlineExceeded(f"{DEADLINE} is {deadline:g} s: it has passed already")
    if keep_alive is not None and keep_alive < 0:
        raise invalid(f"{KEEP_ALIVE} must not be negative", KEEP_ALIVE)
    return Context(request_id, chosen, int(priority), deadline, keep_alive)


def _number(headers: Mapping[str, str], name: str) -> float | None:
    given = headers.get(name)
    if given is None:
        return None
    try:
        number = float(given)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise invalid(f"{name} must be a number, not {given!r}", name)
    return number
