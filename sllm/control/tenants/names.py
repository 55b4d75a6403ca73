"""Names as tenants say them, and as the control plane keeps them.

Every tenant has names of its own: two may each have a deployment `llama`. Within the control plane
a name is whole, `acme:llama`, so that nothing there has to know of tenants to keep two apart. The
tenant `default` has no prefix: a cluster without tenants has names as its callers say them.

    whole("acme", "llama")        # "acme:llama"
    whole("default", "llama")     # "llama"
    said("acme", "acme:llama")    # "llama"
    tenant_of("acme:llama")       # "acme"
"""

import re
import uuid
from typing import Final

from sllm import errors

DEFAULT: Final = "default"
"""The tenant of those who name none."""
_SEPARATOR: Final = ":"
_TENANT: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


def whole(tenant: str, name: str) -> str:
    """The name that a tenant's `name` has within the control plane; none stays none.

    A name of the default tenant that looks like another's becomes one that nothing ever has.
    """
    if not name or (tenant == DEFAULT and _SEPARATOR not in name):
        return name
    return f"{tenant}{_SEPARATOR}{name}"


def said(tenant: str, name: str) -> str:
    """The name as its tenant says it; a name of another tenant stays whole."""
    return name.removeprefix(f"{tenant}{_SEPARATOR}")


def said_within(tenant: str, text: str) -> str:
    """A text with the tenant's names in it as it says them.

    What only looks like one stays: the end of a longer word, a URL, a word before a colon.
    """
    return re.sub(rf"(?<![\w{_SEPARATOR}-]){tenant}{_SEPARATOR}(?![\s/]|$)", "", text)


def tenant_of(name: str) -> str:
    """The tenant to whom a whole name belongs."""
    tenant, separator, _ = name.partition(_SEPARATOR)
    return tenant if separator else DEFAULT


def own(deployment: str, name: str) -> str:
    """The whole name of what belongs to the tenant of a deployment."""
    return whole(tenant_of(deployment), name)


def new_id(deployment: str) -> str:
    """A whole name that nothing has, for a request for a deployment."""
    return own(deployment, uuid.uuid4().hex)


def plain(name: str) -> str:
    """The name that a whole one is within its tenant."""
    _, separator, rest = name.partition(_SEPARATOR)
    return rest if separator else name


def check_tenant(tenant: str) -> str:
    """A tenant's name.

    Raises:
        errors.InvalidName: None may be called so.
    """
    if not _TENANT.fullmatch(tenant):
        raise errors.InvalidName(
            f"tenant {tenant!r} must be 1-63 of [a-z0-9-], neither first nor last a hyphen"
        )
    return tenant
