"""What stands before servicers and sees messages, where the rule of a method asks for it."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc

from sllm.control.access.rules import RULES, Rule


class ByRule(grpc.aio.ServerInterceptor, ABC):
    """Sees messages and typed errors: it stands within ErrorsAndTraces."""

    def __init__(self, rules: Mapping[str, Rule] = RULES) -> None:
        self._rules = rules

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wraps the handler of one method; see grpc.aio.ServerInterceptor."""
        handler = await continuation(handler_call_details)
        rule = self._rules.get(handler_call_details.method)
        if handler is None or rule is None:
            return handler
        return self.wrapped(handler, rule, handler_call_details)

    @abstractmethod
    def wrapped(self, handler: Any, rule: Rule, call: grpc.HandlerCallDetails) -> Any:
        """The handler of a call as it is behind this, which may be as it was."""
