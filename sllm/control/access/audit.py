"""One line for each call that changes something: who, what, and what came of it.

It has names of what was changed, and nothing else of a message: no source, whose URL may hold a
secret, and no prompt.
"""

import functools
from collections.abc import Iterable
from contextlib import aclosing
from functools import partial
from typing import Any, Final

import grpc

from sllm import errors, handlers
from sllm.control.access import principals
from sllm.control.access.by_rule import ByRule
from sllm.control.access.doorkeeper import audit
from sllm.control.access.rules import Rule

_DONE: Final = "OK"


class Auditor(ByRule):
    """Writes a line for each call of a method that changes something."""

    def wrapped(self, handler: Any, rule: Rule, call: grpc.HandlerCallDetails) -> Any:
        """See ByRule."""
        if not rule.changes:
            return handler
        line = _Line(call.method, rule.changes)
        answering, streaming = partial(_answering, line), partial(_streaming, line)
        return handlers.rewrap(handler, answering=answering, streaming=streaming)


class _Line:
    """What is written of one call."""

    def __init__(self, method: str, names: Iterable[str]) -> None:
        self._method = method
        self._names = tuple(names)
        self._target: dict[str, str] = {}
        self._outcome = "CANCELLED"

    def see(self, message: Any) -> None:
        """Takes names out of a message."""
        for path in self._names:
            if found := functools.reduce(_field, path.split("."), message):
                self._target.setdefault(path, str(found))

    def end(self, error: BaseException | None = None) -> None:
        """Notes what came of it. Without this, its caller has left."""
        if error is None:
            self._outcome = _DONE
        elif isinstance(error, Exception):
            self._outcome = error.reason if isinstance(error, errors.SllmError) else "INTERNAL"

    def write(self, context: Any) -> None:
        """Writes it."""
        audit(self._method, principals.current(), self._target, self._outcome, context)


def _field(message: Any, name: str) -> Any:
    return getattr(message, name, None)


def _answering(line: _Line, behaviour: Any) -> Any:
    @functools.wraps(behaviour)
    async def audited(request: Any, context: Any) -> Any:
        line.see(request)
        try:
            response = await behaviour(request, context)
            line.see(response)
            line.end()
            return response
        except BaseException as error:
            line.end(error)
            raise
        finally:
            line.write(context)

    return audited


def _streaming(line: _Line, behaviour: Any) -> Any:
    @functools.wraps(behaviour)
    async def audited(request: Any, context: Any) -> Any:
        line.see(request)
        try:
            async with aclosing(behaviour(request, context)) as responses:
                async for response in responses:
                    yield response
            line.end()
        except BaseException as error:
            line.end(error)
            raise
        finally:
            line.write(context)

    return audited
