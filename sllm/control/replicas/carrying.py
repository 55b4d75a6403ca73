"""Generations that this control plane carries while another one leads."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, Final, TypeAlias

import grpc
from serverlessllm.v1 import inference_service_pb2 as pb

from sllm import errors, rpc, statuses
from sllm.clock import Clock
from sllm.control.replicas.carried import Carried
from sllm.control.replicas.forwarding import refuse
from sllm.control.replicas.node_links import NodeLinks
from sllm.control.replicas.transcript import Transcript
from sllm.handlers import message_of

CARRY: Final = "/serverlessllm.v1.ReplicaService/Carry"
_MOST_BYTES: Final = 1 << 20
"""Of a request that is carried: it goes to the leader, back, and to the node."""

ReachLeader: TypeAlias = Callable[[AsyncIterator[bytes], Any], AsyncGenerator[bytes]]
"""Calls Carry at whoever leads, for a caller of the context."""


class NotCarried(Exception):
    """A request has to be passed on as it is; nothing was done for it."""


class Carrying:
    """Belongs to the event loop."""

    def __init__(
        self, to_nodes: rpc.Dial, reach: ReachLeader, clock: Clock, patience: float
    ) -> None:
        """`reach` leads to whoever leads, `to_nodes` to nodes; `patience` as in Carried."""
        self._reach = reach
        self._nodes = NodeLinks(to_nodes)
        self._clock = clock
        self._patience = patience
        self._under_way: set[Carried] = set()

    async def answers(self, encoded: bytes, context: Any) -> AsyncGenerator[bytes]:
        """What the caller of Generate is answered.

        Raises:
            NotCarried: It is no request to carry, or the leader is of a version that cannot.
            errors.SllmError: Why it ends; see Carried.
            errors.NoLeader: It was begun, and a leader of such a version has come.
            grpc.aio.AbortError: The leader refuses it.
        """

        def reach(requests: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
            return self._reach(requests, context)

        carried = Carried(_transcript(encoded), reach, self._nodes, self._clock, self._patience)
        self._under_way.add(carried)
        begun = False
        try:
            async with aclosing(carried.events()) as events:
                async for event in events:
                    begun = True
                    yield event.SerializeToString()
        except grpc.aio.AioRpcError as error:
            if not isinstance(statuses.from_rpc_error(error), errors.NotServed):
                await refuse(error, context)
            if not begun:
                raise NotCarried from error
            raise errors.NoLeader(
                "a control plane of an earlier version has come to lead, which cannot go on with "
                "this stream; read on",
                retry_after=1.0,
            ) from error
        finally:
            self._under_way.discard(carried)

    def end_streams(self) -> None:
        """Ends all of them."""
        for carried in self._under_way:
            carried.end()

    async def close(self) -> None:
        """Closes the connections to nodes."""
        await self._nodes.close()


def _transcript(encoded: bytes) -> Transcript:
    """Of a request that is carried. What makes no sense is for the leader to refuse.

    Raises:
        NotCarried: It is none.
    """
    if len(encoded) > _MOST_BYTES:
        raise NotCarried
    try:
        request = message_of(pb.GenerateRequest.FromString, encoded)
        if request.n > 1 or request.choices:
            raise NotCarried
        return Transcript(request)
    except errors.InvalidArgument as error:
        raise NotCarried from error
