"""Counts the requests that are refused because their tenant has all that it may have."""

import functools
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

import grpc

from sllm import errors, handlers
from sllm.control.access import principals
from sllm.control.access.by_rule import ByRule
from sllm.control.access.rules import Rule
from sllm.control.access.turnstile import Turnstile
from sllm.control.types.access import CallerRole


class Refused(ByRule):
    """Tells the turnstile of refusals of methods that tenants' bounds are about."""

    def __init__(self, turnstile: Turnstile) -> None:
        super().__init__()
        self._turnstile = turnstile

    def wrapped(self, handler: Any, rule: Rule, call: grpc.HandlerCallDetails) -> Any:
        """See ByRule."""
        if not rule.bounded:
            return handler
        return handlers.rewrap(handler, answering=self._answering, streaming=self._streaming)

    def _answering(self, behaviour: Any) -> Any:
        @functools.wraps(behaviour)
        async def counted(request: Any, context: Any) -> Any:
            with self._counted():
                return await behaviour(request, context)

        return counted

    def _streaming(self, behaviour: Any) -> Any:
        @functools.wraps(behaviour)
        async def counted(request: Any, context: Any) -> AsyncGenerator[Any]:
            with self._counted():
                async with aclosing(behaviour(request, context)) as responses:
                    async for response in responses:
                        yield response

        return counted

    @contextmanager
    def _counted(self) -> Iterator[None]:
        try:
            yield
        except (errors.TenantLimit, errors.QueueFull):
            caller = principals.current()
            if caller.role is not CallerRole.ADMIN:  # who may act for any tenant
                self._turnstile.count(caller.tenant)
            raise
