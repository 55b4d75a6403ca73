"""Names in messages, made whole as they come in and said as their tenant says them as they go out.

Done here for all calls alike, so that no servicer can forget it: a field that names a deployment, a
request or a batch is known by its own name, wherever it is in a message.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from sllm.control.tenants import names

_PROTOCOL: Final = "serverlessllm.v1."
_NAMING: Final = frozenset(
    {
        "base",
        "batch_id",
        "deployment",
        "gone_deployments",
        "request_id",
        "unread_request_ids",
    }
)
"""Fields that name what belongs to a tenant, in whichever message."""
_NAMING_THERE: Final = frozenset(
    {
        "DeleteDeploymentRequest.name",
        "DeployRequest.name",
        "Deployment.name",
        "GetDeploymentRequest.name",
        "Receipt.adapter",
        "WatchDeploymentRequest.name",
    }
)
"""Fields whose names mean other things elsewhere."""

Rename = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class _Plan:
    """Where names are in messages of one type."""

    named: tuple[FieldDescriptor, ...]
    """Its own fields that are names."""
    within: tuple[FieldDescriptor, ...]
    """Its fields that are messages which have names in them."""


@dataclass(frozen=True, slots=True)
class Scope:
    """The names of one tenant.

    scope = Scope("acme")
    scope.come_in(request)  # request.deployment was "llama", and is "acme:llama"
    scope.go_out(response)  # and back
    """

    tenant: str

    def come_in(self, message: Any) -> None:
        """Makes all names in a message whole."""
        _rename(message, partial(names.whole, self.tenant))

    def go_out(self, message: Any) -> None:
        """Has all names in a message as the tenant says them."""
        _rename(message, partial(names.said, self.tenant))

    def in_words(self, text: str) -> str:
        """A text in which names are as the tenant says them."""
        return names.said_within(self.tenant, text)


def _rename(message: Any, rename: Rename) -> None:
    plan = _plan(message.DESCRIPTOR)
    for field in plan.named:
        _rename_field(message, field, rename)
    for field in plan.within:
        for part in _parts(message, field):
            _rename(part, rename)


def _rename_field(message: Any, field: FieldDescriptor, rename: Rename) -> None:
    value = getattr(message, field.name)
    if field.is_repeated:
        value[:] = [rename(one) for one in value]
    elif value:  # what is not set stays so: its presence may mean something
        setattr(message, field.name, rename(value))


def _parts(message: Any, field: FieldDescriptor) -> tuple[Any, ...]:
    value = getattr(message, field.name)
    if field.is_repeated:
        return tuple(value)
    return (value,) if message.HasField(field.name) else ()


@cache
def _plan(message: Descriptor) -> _Plan:
    return _Plan(
        named=tuple(field for field in message.fields if is_name(field)),
        within=tuple(field for field in message.fields if _leads_to_names(field, ())),
    )


def is_name(field: FieldDescriptor) -> bool:
    """Whether a field names what belongs to a tenant."""
    if field.type != FieldDescriptor.TYPE_STRING:
        return False
    return field.name in _NAMING or field.full_name.removeprefix(_PROTOCOL) in _NAMING_THERE


def _leads_to_names(field: FieldDescriptor, passed: tuple[Descriptor, ...]) -> bool:
    inner = field.message_type
    if inner is None or inner in passed:
        return False
    if not inner.full_name.startswith(_PROTOCOL):
        return False
    onward = (*passed, inner)
    return any(is_name(one) or _leads_to_names(one, onward) for one in inner.fields)
