"""Who calls, and what that is known by."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from sllm import errors
from sllm.control.tenants.names import DEFAULT, check_tenant, tenant_of

MAX_NOTE: Final = 200
LONGEST_TTL: Final = 10 * 365 * 24 * 3600.0


class CallerRole(IntEnum):
    """As in the protocol. Each may do all that those below it may."""

    USER = 1
    OPERATOR = 2
    ADMIN = 3


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller who is known."""

    tenant: str
    role: CallerRole
    key_id: str
    """The id of its key, or what an issuer calls it. Empty: nobody is asked."""

    def sees(self, name: str) -> bool:
        """Whether what has this whole name is its tenant's, or it sees those of all."""
        return self.is_of(tenant_of(name))

    def is_of(self, tenant: str) -> bool:
        """Whether it belongs to a tenant, or to all."""
        return self.role is CallerRole.ADMIN or tenant == self.tenant


ANYBODY: Final = Principal(DEFAULT, CallerRole.ADMIN, "")
"""Every caller where nobody is asked."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key, without its secret. Times are seconds since the epoch."""

    key_id: str
    digest: str
    """SHA-256 of the secret, in hexadecimal.

    A secret has 256 random bits: nobody can guess his way from the digest back to it, which a slow
    hash or salt is against, and a fast one costs a call nothing.
    """
    tenant: str
    role: CallerRole
    created_at: float
    expires_at: float | None = None
    """None: it does not end by itself."""
    revoked_at: float | None = None
    note: str = ""

    def is_good(self, now: float) -> bool:
        """Whether calls may still begin with it."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


@dataclass(frozen=True, slots=True)
class KeyAsk:
    """A key that somebody wants."""

    tenant: str
    role: CallerRole
    ttl: float | None = None
    """Seconds. None: it does not end by itself."""
    note: str = ""

    def check(self) -> None:
        """Refuses what cannot be.

        Raises:
            errors.InvalidArgument: Says what, and what it may be.
        """
        check_tenant(self.tenant)
        if self.ttl is not None and not 0 < self.ttl <= LONGEST_TTL:
            raise errors.InvalidArgument(
                f"a key may last above 0 and up to {LONGEST_TTL:.0f} s, not {self.ttl:g} s"
            )
        if len(self.note) > MAX_NOTE:
            raise errors.InvalidArgument(f"a note may have {MAX_NOTE} characters")
