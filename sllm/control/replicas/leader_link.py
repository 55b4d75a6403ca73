"""One call of Carry, at the control plane that makes it."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import TypeAlias

import grpc
from serverlessllm.v1 import node_service_pb2 as node_pb
from serverlessllm.v1 import replica_service_pb2 as pb

from sllm import errors, statuses
from sllm.control.replicas.forwarding import LeaderGone

Reach: TypeAlias = Callable[[AsyncIterator[bytes]], AsyncGenerator[bytes]]
"""Makes the call at whoever leads."""
_GONE = (LeaderGone, errors.NotLeader, errors.ShuttingDown)


class LeaderLink:
    """What is said to a leader of one generation, and what it says. Belongs to the event loop."""

    def __init__(self, reach: Reach, begin: pb.CarryBegin, changed: asyncio.Event) -> None:
        """`changed` is set whenever there is more to take, or it has ended."""
        self.responses: deque[pb.CarryResponse] = deque()
        """What has come and was not taken yet."""
        self.answered = False
        """Whether anything has come."""
        self.gone: Exception | None = None
        """Why nothing more comes, though another leader may go on with it."""
        self.refusal: Exception | None = None
        """Why nothing more comes of it."""
        self._requests: asyncio.Queue[pb.CarryRequest] = asyncio.Queue()
        self._requests.put_nowait(pb.CarryRequest(begin=begin))
        self._changed = changed
        self._task = asyncio.create_task(self._run(reach), name="a carried generation")

    def tell(self, output: node_pb.CallOutput) -> None:
        """Says what has come of a call."""
        self._requests.put_nowait(pb.CarryRequest(output=output))

    async def close(self) -> None:
        """Ends the call."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self, reach: Reach) -> None:
        try:
            async with aclosing(reach(self._asked())) as responses:
                async for response in responses:
                    self.answered = True
                    self.responses.append(pb.CarryResponse.FromString(response))
                    self._changed.set()
            self.refusal = errors.Internal("the control plane that leads left without an end")
        except _GONE as error:
            self.gone = error
        except grpc.aio.AioRpcError as error:
            leaves = isinstance(statuses.from_rpc_error(error), errors.ShuttingDown)
            self.gone, self.refusal = (error, None) if leaves else (None, error)
        except Exception as error:  # whoever waits for a word has to hear of any end
            self.refusal = error
        finally:
            self._changed.set()

    async def _asked(self) -> AsyncIterator[bytes]:
        while True:
            request = await self._requests.get()
            yield request.SerializeToString()
