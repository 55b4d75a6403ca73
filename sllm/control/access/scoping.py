"""Each caller among the names of its own tenant: what it says is made whole, and said back to it.

An admin says whole names, and sees those of all.
"""

import copy
import functools
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager, nullcontext
from typing import Any

import grpc

from sllm import errors, handlers
from sllm.control.access import principals
from sllm.control.access.by_rule import ByRule
from sllm.control.access.rules import Rule
from sllm.control.types.access import CallerRole
from sllm.control.wire.scoping import Scope


class Scoping(ByRule):
    """Changes names in messages and typed errors, where callers are known."""

    def wrapped(self, handler: Any, rule: Rule, call: grpc.HandlerCallDetails) -> Any:
        """See ByRule."""
        if rule.role is None:
            return handler
        return handlers.rewrap(handler, answering=_answering, streaming=_streaming)


def _scope() -> Scope | None:
    """Whose names the caller says. None: all are whole."""
    caller = principals.current()  # the doorkeeper has let it in by now
    return None if caller.role is CallerRole.ADMIN else Scope(caller.tenant)


def _answering(behaviour: Any) -> Any:
    @functools.wraps(behaviour)
    async def scoped(request: Any, context: Any) -> Any:
        if (scope := _scope()) is None:
            return await behaviour(request, context)
        with _said(scope):
            response = await behaviour(_asked(request, scope), context)
        scope.go_out(response)
        return response

    return scoped


def _streaming(behaviour: Any) -> Any:
    @functools.wraps(behaviour)
    async def scoped(request: Any, context: Any) -> Any:
        scope = _scope()
        asked = request if scope is None else _asked(request, scope)
        with _said(scope) if scope else nullcontext():
            async with aclosing(behaviour(asked, context)) as responses:
                async for response in responses:
                    if scope:
                        scope.go_out(response)
                    yield response

    return scoped


def _asked(request: Any, scope: Scope) -> Any:
    if isinstance(request, AsyncIterator):
        return _each(request, scope)
    scope.come_in(request)
    return request


async def _each(requests: AsyncIterator[Any], scope: Scope) -> AsyncIterator[Any]:
    async for request in requests:
        scope.come_in(request)
        yield request


@contextmanager
def _said(scope: Scope) -> Iterator[None]:
    """Raises typed errors with names as their tenant says them."""
    try:
        yield
    except errors.SllmError as error:
        said = copy.copy(error)
        said.message = scope.in_words(error.message)
        said.args = (said.message,)
        said.metadata = {key: scope.in_words(value) for key, value in error.metadata.items()}
        raise said from error
