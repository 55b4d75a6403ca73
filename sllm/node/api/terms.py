"""Whose orders this node takes of several control planes: the latest leader's."""

import functools
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterator
from contextlib import aclosing, contextmanager
from functools import partial
from typing import Any, Final

import grpc
import structlog
from serverlessllm.v1 import node_service_pb2

from sllm import errors, handlers, rpc

log = structlog.get_logger()

_ORDERS: Final = f"/{node_service_pb2.DESCRIPTOR.services_by_name['NodeService'].full_name}/"
"""What the methods begin with by which nodes are given orders."""
_TERM: Final = re.compile(r"[0-9]{1,18}", re.ASCII)

Deposed = Callable[[errors.StaleTerm], None]


class Terms:
    """The highest term that has come, and what was begun in those before."""

    def __init__(self) -> None:
        self._highest: int | None = None
        self._open: set[Deposed] = set()

    def admit(self, term: int | None, *, order: bool) -> None:
        """Takes a call of this term or refuses it. A higher one than before deposes all others.

        Args:
            term: Of the control plane that calls. None: it says none.
            order: Whether nobody else could call so.

        Raises:
            errors.StaleTerm: It is of a control plane that leads no more.
        """
        highest = self._highest
        if term is None:
            if highest is not None and order:
                raise self._stale("does not say in which term it leads")
        elif highest is None or term > highest:
            self._rise(term)
        elif term < highest:
            raise self._stale(f"led in term {term}")

    @contextmanager
    def until_deposed(self, deposed: Deposed) -> Iterator[None]:
        """Has `deposed` called if a later term begins while the block lasts."""
        self._open.add(deposed)
        try:
            yield
        finally:
            self._open.discard(deposed)

    def _rise(self, term: int) -> None:
        log.info("node.term", term=term)
        self._highest = term
        for deposed in tuple(self._open):
            deposed(self._stale("led before"))

    def _stale(self, what: str) -> errors.StaleTerm:
        return errors.StaleTerm(
            f"the control plane {what}, and this node has heard of term {self._highest}: ask the "
            "one that leads now; after a move to another store, restart the nodes",
            metadata={"term": str(self._highest)},
        )


class ObeysLatest(grpc.aio.ServerInterceptor):
    """Refuses calls of control planes that lead no more.

    A term is looked at once whoever says it was let in: it stands within what looks at
    certificates. Of calls that others may make as well, none is believed.
    """

    def __init__(self, terms: Terms, services: Collection[str]) -> None:
        """`services` are those that control planes alone call, by their full names."""
        self._terms = terms
        self._services = frozenset(services)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wraps the handler of one method; see grpc.aio.ServerInterceptor."""
        handler = await continuation(handler_call_details)
        service = handler_call_details.method.rpartition("/")[0].removeprefix("/")
        if handler is None or service not in self._services:
            return handler
        admit = partial(self._admit, handler_call_details)
        return handlers.rewrap(
            handler, answering=partial(_answering, admit), streaming=partial(_streaming, admit)
        )

    def _admit(self, call: grpc.HandlerCallDetails) -> None:
        said = dict(call.invocation_metadata or ()).get(rpc.TERM_HEADER)
        if said is not None and not (isinstance(said, str) and _TERM.fullmatch(said)):
            raise errors.InvalidArgument(f"{rpc.TERM_HEADER} is no number: {said!r:.80}")
        term = None if said is None else int(said)
        self._terms.admit(term, order=call.method.startswith(_ORDERS))


def _answering(admit: Callable[[], None], behaviour: Any) -> Any:
    @functools.wraps(behaviour)
    async def admitted(request: Any, context: Any) -> Any:
        admit()
        return await behaviour(request, context)

    return admitted


def _streaming(admit: Callable[[], None], behaviour: Any) -> Any:
    @functools.wraps(behaviour)
    async def admitted(request: Any, context: Any) -> AsyncGenerator[Any]:
        admit()
        async with aclosing(behaviour(request, context)) as responses:
            async for response in responses:
                yield response

    return admitted
