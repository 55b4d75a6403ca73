"""Calls that have no end of their own: they end soon after their caller's key counts no more."""

import asyncio
import functools
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, Final

import grpc

from sllm import errors, handlers
from sllm.control.access.by_rule import ByRule
from sllm.control.access.doorkeeper import Doorkeeper
from sllm.control.access.rules import RULES, Rule

_LOOK_SECONDS: Final = 5.0
"""Between two looks at a key while a call of its goes on."""


class Expiry(ByRule):
    """Ends calls of methods that end by themselves only with their caller."""

    def __init__(self, keeper: Doorkeeper, rules: Mapping[str, Rule] = RULES) -> None:
        """`keeper` has let in whoever comes here, and would say no to it later."""
        super().__init__(rules)
        self._keeper = keeper

    def wrapped(self, handler: Any, rule: Rule, call: grpc.HandlerCallDetails) -> Any:
        """See ByRule."""
        if not rule.endless:
            return handler
        ending = self._ending(handler.unary_stream, call)
        return handlers.with_behaviour(handler, ending, handler.request_deserializer)

    def _ending(self, behaviour: Any, call: grpc.HandlerCallDetails) -> Any:
        @functools.wraps(behaviour)
        async def ending(request: Any, context: Any) -> AsyncGenerator[Any]:
            over = asyncio.create_task(self._until_over(call), name=f"key of {call.method}")
            try:
                async with aclosing(behaviour(request, context)) as responses:
                    while (response := await _next(responses, over)) is not None:
                        yield response
            finally:
                over.cancel()

        return ending

    async def _until_over(self, call: grpc.HandlerCallDetails) -> errors.SllmError:
        """Returns why a caller would not be let in any more, once that is so."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                await self._keeper.admit(call)
            except errors.SllmError as error:
                return error


async def _next(
    responses: AsyncGenerator[Any], over: "asyncio.Task[errors.SllmError]"
) -> Any | None:
    """The next response; None if that was the last.

    Raises:
        errors.SllmError: What `over` has come to, before or meanwhile.
    """
    task = asyncio.current_task()
    assert task is not None

    def end(_: object) -> None:
        task.cancel()

    over.add_done_callback(end)  # while this waits alone: a message may be on its way otherwise
    try:
        if not over.done():
            return await anext(responses, None)
    except asyncio.CancelledError:
        if not over.done():
            raise
        task.uncancel()
    finally:
        over.remove_done_callback(end)
    raise over.result()
