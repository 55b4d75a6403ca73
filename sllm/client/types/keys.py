"""Keys, as admins see them."""

from dataclasses import dataclass

from sllm.client.types.enums import CallerRole


@dataclass(frozen=True, slots=True)
class Key:
    """A key, without its secret. Times are seconds since the epoch."""

    key_id: str
    """Names it where its secret must not be."""
    tenant: str
    """Whose it is."""
    role: CallerRole
    """What it may do."""
    created_at: float
    """When it was made."""
    expires_at: float | None
    """None: it does not end by itself."""
    revoked_at: float | None
    """None: it was not revoked."""
    note: str
    """What its maker has said of it."""


@dataclass(frozen=True, slots=True)
class CreatedKey:
    """A key, and its secret, which is told this once."""

    key: Key
    """What is known of it from then on."""
    secret: str
    """What callers give as `api_key`. Empty: the call was repeated."""
