"""Who has made the call that a task works on."""

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Final, TypeVar

from sllm.control.types.access import Principal

Value = TypeVar("Value")

_CURRENT: Final[ContextVar[Principal]] = ContextVar("principal")


def enter(principal: Principal) -> None:
    """Says who has made this call, whose task, and so whose context, gRPC has made for it."""
    _CURRENT.set(principal)


def current() -> Principal:
    """Who has made this call.

    Raises:
        LookupError: It is none that was let in by the doorkeeper.
    """
    return _CURRENT.get()


def own(named: Mapping[str, Value]) -> dict[str, Value]:
    """Of what has whole names, what the caller may see."""
    sees = current().sees
    return {name: value for name, value in named.items() if sees(name)}
