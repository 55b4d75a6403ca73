"""Which of the cluster's own processes may call what: told by the certificate of a connection."""

import functools
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import Any, TypeAlias

import grpc
from grpc_status import rpc_status

from sllm import errors, handlers, statuses
from sllm.tls.identity import Role, roles_in
from sllm.tls.revocations import Revocations

PeerRules: TypeAlias = Mapping[str, Collection[Role]]
"""By the full name of a service: who may call its methods."""


class PeersAlone(grpc.aio.ServerInterceptor):
    """Refuses calls of certain services to all but peers whose certificate has a role for it.

    A certificate that was revoked lets nobody call anything, and ends what its owner has called.
    """

    def __init__(
        self, cluster: str, rules: PeerRules, revoked: Callable[[], Collection[int]] = frozenset
    ) -> None:
        """`revoked` gives the serial numbers of certificates that count no more."""
        self._cluster = cluster
        self._rules = rules
        self._revocations = Revocations(revoked)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wraps the handler of one method; see grpc.aio.ServerInterceptor."""
        handler = await continuation(handler_call_details)
        service = handler_call_details.method.rpartition("/")[0].removeprefix("/")
        allowed = self._rules.get(service)
        if handler is None:
            return None
        check = functools.partial(self._check, None if allowed is None else frozenset(allowed))
        return _guarded(handler, check, self._revocations)

    def _check(self, allowed: frozenset[Role] | None, context: Any) -> None:
        if allowed is not None and not roles_in(peer_names(context), self._cluster) & allowed:
            raise errors.PermissionDenied(
                "only the cluster's own processes may call this, by their certificates"
            )


def peer_names(context: Any) -> Iterable[str]:
    """DNS names of the certificate that the caller's connection was made with."""
    found = context.auth_context().get("peer_dns", ())
    return [name.decode(errors="replace") for name in found]


def _guarded(handler: Any, check: Callable[[Any], None], revocations: Revocations) -> Any:
    """A handler of ErrorsAndTraces' that looks at its caller before it reads what is asked."""
    behaviour = handlers.behaviour_of(handler)

    @functools.wraps(behaviour)
    async def guarded(request: Any, context: Any) -> Any:
        try:
            check(context)
            with revocations.watched(context):
                return await behaviour(request, context)
        except errors.PermissionDenied as error:
            await context.abort_with_status(rpc_status.to_status(statuses.to_status(error)))

    return handlers.with_behaviour(handler, guarded, handler.request_deserializer)
