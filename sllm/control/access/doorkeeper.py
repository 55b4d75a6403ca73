"""Lets calls in, or not, before anything of them is read."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import grpc
import structlog
from grpc_status import rpc_status

from sllm import errors, rpc, statuses
from sllm.control.access import principals
from sllm.control.access.rules import RULES, Rule
from sllm.control.access.turnstile import NOBODY, Turnstile
from sllm.control.tenants.names import DEFAULT
from sllm.control.types.access import ANYBODY, CallerRole, Principal

log = structlog.get_logger()

_BEARER: Final = "bearer "
_MOST_CHARACTERS: Final = 16_384
"""Of what is shown: tokens of issuers have a few thousand."""
_MOST_OF_NAME: Final = 256
"""Characters that are written of a name: those that are refused may be of any length."""


class Known(Protocol):
    """What knows callers by what they show."""

    async def principal(self, shown: str) -> Principal | None:
        """Who that is. None: it is nobody, or nobody any more."""
        ...


class Doorkeeper(grpc.aio.ServerInterceptor):
    """Asks each caller who it is, and looks up whether it may.

    A call that is refused ends before its first message is read. A stream that was let in goes on
    to its end, however its caller's key fares meanwhile; for those without one see `Expiry`.
    """

    def __init__(
        self,
        known: Sequence[Known] | None,
        turnstile: Turnstile,
        rules: Mapping[str, Rule] = RULES,
    ) -> None:
        """`known`: None lets everybody in, as an admin of the default tenant."""
        self._known = known
        self._turnstile = turnstile
        self._rules = rules

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Finds the handler of one call; see grpc.aio.ServerInterceptor."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        rule = self._rules.get(method)
        if rule and (rule.peers or rule.role is None):
            return handler
        principal: Principal | None = None
        try:
            principal = await self._principal(handler_call_details.invocation_metadata)
            _check(rule, principal)
            if rule and principal.role is not CallerRole.ADMIN:  # who may act for any tenant
                self._turnstile.check(principal.tenant, bounded=rule.bounded)
        except errors.SllmError as error:
            return self._refusing(error, method, rule, principal)
        principals.enter(principal)
        return handler

    async def admit(self, call: grpc.HandlerCallDetails) -> Principal:
        """Whoever makes a call that asks for a key.

        Raises:
            errors.Unauthenticated: It shows none that counts.
            errors.PermissionDenied: It may not make this call.
        """
        principal = await self._principal(call.invocation_metadata)
        _check(self._rules.get(call.method), principal)
        return principal

    def _refusing(
        self, error: errors.SllmError, method: str, rule: Rule | None, principal: Principal | None
    ) -> Any:
        """A handler that refuses a call of whatever kind, and reads nothing of it."""

        async def refuse(_requests: Any, context: Any) -> None:
            late = self._turnstile.count(principal.tenant if principal else NOBODY)
            if not late and (rule is None or rule.changes):
                audit(method, principal, {}, error.reason, context)
            await self._turnstile.hold(late, context)
            await context.abort_with_status(rpc_status.to_status(statuses.to_status(error)))

        return grpc.stream_stream_rpc_method_handler(refuse)

    async def _principal(self, metadata: Any) -> Principal:
        if self._known is None:
            return ANYBODY
        if shown := _shown(metadata):
            for known in self._known:
                if found := await known.principal(shown):
                    return found
        raise errors.Unauthenticated(
            "this control plane asks who is calling: show a key that is good, as "
            "`authorization: Bearer KEY`"
        )


def _shown(metadata: Any) -> str:
    """What a caller shows; empty if that is nothing, or not one thing."""
    found = [value for name, value in metadata or () if name == "authorization"]
    if len(found) != 1 or not isinstance(found[0], str) or len(found[0]) > _MOST_CHARACTERS:
        return ""
    told: str = found[0]
    return told[len(_BEARER) :].strip() if told[: len(_BEARER)].lower() == _BEARER else ""


def _check(rule: Rule | None, principal: Principal) -> None:
    if rule is None or rule.role is None or principal.role < rule.role:
        least = rule.role.name.lower() if rule and rule.role else "nobody"
        raise errors.PermissionDenied(f"this call takes the role of {least} at least")
    if rule.shared and principal.tenant != DEFAULT and principal.role is not CallerRole.ADMIN:
        raise errors.PermissionDenied("this call is about what tenants share: it takes an admin")


def audit(
    method: str,
    principal: Principal | None,
    target: Mapping[str, str],
    outcome: str,
    context: Any,
) -> None:
    """Writes the line of one call that changes something, or was to."""
    told = dict(context.invocation_metadata() or ()).get(rpc.FORWARDED_HEADER)
    log.info(
        "audit",
        method=method.removeprefix("/"),
        tenant=principal.tenant if principal else None,
        role=principal.role.name.lower() if principal else None,
        key=principal.key_id if principal else None,
        target={field: name[:_MOST_OF_NAME] for field, name in target.items()},
        outcome=outcome,
        peer=context.peer(),
        **({"forwarded_for": str(told)[:_MOST_OF_NAME]} if told else {}),
    )
