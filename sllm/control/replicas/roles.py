"""Who answers a call here: this control plane while it leads, or else the one that does."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, Final

import grpc
from google.protobuf import descriptor

from sllm import errors, rpc
from sllm.clock import Clock
from sllm.control.election.ballot import Leader
from sllm.control.replicas.carrying import CARRY, Carrying, NotCarried
from sllm.control.replicas.forwarding import FORWARDED, Forwarding, LeaderGone
from sllm.control.replicas.handlers import Handlers, answers
from sllm.control.replicas.replica_service import Call

_RETRY_SECONDS: Final = 0.1
_GENERATE: Final = "/serverlessllm.v1.InferenceService/Generate"
_KEPT_HERE: Final = "/serverlessllm.v1.FleetService/Report"
"""Nodes report to every control plane: whoever comes to lead has heard of them already."""


class NobodyLeads(LeaderGone):
    """A call was given to nobody: all of it is still there."""


class Roles(grpc.GenericRpcHandler):
    """The handlers of all services, whoever leads. Belongs to the event loop."""

    def __init__(
        self,
        services: Sequence[descriptor.ServiceDescriptor],
        holder: str,
        clock: Clock,
        patience_seconds: float,
        to_leader: rpc.Dial = rpc.channel,
        to_nodes: rpc.Dial = rpc.channel,
    ) -> None:
        """`holder` is this control plane's name in the election; `to_leader` leads to others."""
        self._methods = {
            f"/{service.full_name}/{method.name}": method
            for service in services
            for method in service.methods
        }
        self._holder = holder
        self._clock = clock
        self._patience = patience_seconds
        self._own: Handlers | None = None
        self._forwarding = Forwarding(to_leader)
        self._carrying = Carrying(to_nodes, self._carry, clock, patience_seconds)
        self._closing = False
        self._changed = asyncio.Event()

    # --- roles --------------------------------------------------------------------------------

    def lead(self, own: Handlers) -> None:
        """Calls are answered here from now on."""
        self._own = own
        self._wake()

    def follow(self) -> None:
        """They are no more."""
        self._own = None
        self._wake()

    def see(self, leader: Leader | None) -> None:
        """Somebody leads, maybe this control plane itself; or nobody does."""
        mine = leader is not None and leader.holder == self._holder
        self._forwarding.turn_to(None if mine else leader)
        self._wake()

    async def close(self) -> None:
        """Ends what was passed on, and what waits, with ShuttingDown."""
        self._closing = True
        self._wake()
        self._carrying.end_streams()
        await self._forwarding.close()
        await self._carrying.close()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    # --- calls --------------------------------------------------------------------------------

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """The handler of a call; see grpc.GenericRpcHandler."""
        if handler_call_details.method not in self._methods:
            return None
        if self._own:
            return self._own.find(handler_call_details)
        elsewhere = partial(self._elsewhere, handler_call_details)
        return grpc.stream_stream_rpc_method_handler(elsewhere, bytes, bytes)

    async def _elsewhere(
        self, call: grpc.HandlerCallDetails, requests: AsyncIterator[bytes], context: Any
    ) -> AsyncGenerator[bytes]:
        """A call that came while this control plane did not lead.

        Raises:
            errors.NoLeader: Nobody leads, or whoever did is gone.
            errors.NotLeader: Another control plane took this one for the leader.
        """
        if call.method == _KEPT_HERE:
            await self._until_leading()
        elif FORWARDED in dict(context.invocation_metadata() or ()):
            raise errors.NotLeader("this control plane does not lead; ask the one that does")
        if not self._methods[call.method].client_streaming:
            requests = _Same(await anext(requests, b""))
        async with aclosing(self._served(call, requests, context)) as responses:
            async for response in responses:
                yield response

    async def _served(
        self, call: grpc.HandlerCallDetails, requests: AsyncIterator[bytes], context: Any
    ) -> AsyncGenerator[bytes]:
        """A generation is carried, if it can be; everything else is passed on."""
        if call.method == _GENERATE and isinstance(requests, _Same):
            try:
                async with aclosing(self._carrying.answers(requests.request, context)) as events:
                    async for event in events:
                        yield event
                return
            except NotCarried:
                pass  # nothing of it was answered
        async with aclosing(self._answers(call, requests, context)) as responses:
            async for response in responses:
                yield response

    def _carry(self, requests: AsyncIterator[bytes], context: Any) -> AsyncGenerator[bytes]:
        """Calls Carry at whoever leads, this control plane itself if it has come to that."""
        call = Call(CARRY, context.invocation_metadata())
        if own := self._own and self._own.find(call):
            return answers(own, requests, context)
        if self._forwarding.possible:
            return self._forwarding.passed_on(CARRY, requests, context)
        return _nobody()

    async def _answers(
        self, call: grpc.HandlerCallDetails, requests: AsyncIterator[bytes], context: Any
    ) -> AsyncGenerator[bytes]:
        """What the leader answers, who is looked for again until its first word has come."""
        deadline = self._clock.now() + self._patience
        while True:
            begun = False
            try:
                async with aclosing(self._once(call, requests, context)) as responses:
                    async for response in responses:
                        begun = True
                        yield response
                return
            except LeaderGone as error:
                whole = isinstance(requests, _Same) or isinstance(error, NobodyLeads)
                self._check_goes_on(error, deadline, again=whole and not begun)
            await self._clock.sleep(_RETRY_SECONDS)

    def _check_goes_on(self, error: LeaderGone, deadline: float, *, again: bool) -> None:
        if self._closing:
            raise errors.ShuttingDown("the control plane is going down; try again") from error
        if not again:
            raise errors.NoLeader(
                f"the control plane that led is gone ({error}); read on, or try again",
                retry_after=1.0,
            ) from error
        if self._clock.now() >= deadline:
            raise errors.NoLeader(
                f"no control plane has led for {self._patience:g} s ({error}); one has to run, and "
                "a majority of etcd's members: try again",
                retry_after=1.0,
            ) from error

    def _once(
        self, call: grpc.HandlerCallDetails, requests: AsyncIterator[bytes], context: Any
    ) -> AsyncGenerator[bytes]:
        if isinstance(requests, _Same):
            requests = requests.again()
        if own := self._own and self._own.find(call):
            return answers(own, requests, context)
        if self._forwarding.possible:
            return self._forwarding.answers(call.method, requests, context)
        return _nobody()

    async def _until_leading(self) -> None:
        while not self._own:
            changed = self._changed
            if self._closing:
                raise errors.ShuttingDown("the control plane is going down; connect again")
            await changed.wait()


async def _nobody() -> AsyncGenerator[bytes]:
    raise NobodyLeads("nobody leads")
    yield b""


class _Same:
    """The only request of a call, which may be made again."""

    def __init__(self, request: bytes) -> None:
        self.request = request
        self._given = False

    def again(self) -> "_Same":
        """It from the beginning."""
        return _Same(self.request)

    def __aiter__(self) -> "_Same":
        return self

    async def __anext__(self) -> bytes:
        if self._given:
            raise StopAsyncIteration
        self._given = True
        return self.request
