"""Who a process of the cluster is: a DNS name in its certificate, such as node.prod.sllm.internal.

A name, and not a URI: so the check that every TLS client makes of a server's name is the check of
its role, wherever that server runs. `.internal` is kept for private use by ICANN.
"""

import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Final

from sllm.errors import InvalidArgument

DEFAULT_CLUSTER: Final = "default"


class Role(StrEnum):
    """What a process may be within a cluster."""

    CONTROL = "control"
    NODE = "node"
    GATEWAY = "gateway"
    METRICS = "metrics"
    """Reads metrics, and may do nothing else."""


_LABEL: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_NAME: Final = re.compile(
    rf"(?P<role>{'|'.join(Role)})\.(?P<cluster>{_LABEL.pattern})\.sllm\.internal"
)


def role_of(word: str) -> Role:
    """The role that is called so.

    Raises:
        InvalidArgument: None is.
    """
    try:
        return Role(word)
    except ValueError as error:
        raise InvalidArgument(f"{word!r} is no role: there are {', '.join(Role)}") from error


def name_of(role: Role, cluster: str) -> str:
    """The DNS name that says so in a certificate.

    Raises:
        InvalidArgument: A cluster cannot be called so.
    """
    if not _LABEL.fullmatch(cluster):
        raise InvalidArgument(
            f"a cluster cannot be called {cluster!r}: up to 63 lower-case letters, digits and -"
        )
    return f"{role}.{cluster}.sllm.internal"


def roles_in(names: Iterable[str], cluster: str) -> frozenset[Role]:
    """What a certificate of these names may be in a cluster."""
    found = (_NAME.fullmatch(name) for name in names)
    return frozenset(Role(one["role"]) for one in found if one and one["cluster"] == cluster)


def cluster_of(names: Iterable[str]) -> str:
    """The one cluster that a certificate's names are of.

    Raises:
        InvalidArgument: They are of none, or of several.
    """
    names = sorted(names)
    found = {one["cluster"] for one in map(_NAME.fullmatch, names) if one}
    if len(found) != 1:
        raise InvalidArgument(
            f"a certificate of the names {', '.join(names) or '(none)'} is of no cluster, or of "
            "several: one of them must be like node.default.sllm.internal; "
            "`sllm certs issue` makes such certificates"
        )
    return found.pop()
