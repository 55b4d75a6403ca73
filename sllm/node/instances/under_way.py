"""The requests that one worker has: expected, submitted to its engine, or answered at once."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from serverlessllm.v1 import worker_service_pb2 as pb

from sllm import errors
from sllm.node.instances.outputs import OutputStream


class UnderWay:
    """Belongs to the event loop."""

    def __init__(self) -> None:
        self._streams: dict[str, OutputStream] = {}
        self._expected: dict[str, OutputStream] = {}
        """Of requests that are to be submitted once their adapters are there."""
        self._encoding: set[asyncio.Future[errors.SllmError]] = set()
        """Of requests that are answered at once: each can be given up with the reason."""
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        return len(self._streams) + len(self._expected) + len(self._encoding)

    def expect(self, request_id: str, stream: OutputStream) -> None:
        """Counts a request that is to be submitted, or forgotten."""
        self._expected[request_id] = stream
        self._idle.clear()

    def submit(self, request_id: str, stream: OutputStream) -> None:
        """Counts one that the engine has."""
        self._expected.pop(request_id, None)
        self._streams[request_id] = stream
        self._idle.clear()

    @contextmanager
    def encoding(self) -> Iterator[asyncio.Future[errors.SllmError]]:
        """Counts one that is answered at once; what it gives says when to give that up, and why."""
        given_up: asyncio.Future[errors.SllmError] = asyncio.get_running_loop().create_future()
        self._encoding.add(given_up)
        self._idle.clear()
        try:
            yield given_up
        finally:
            self._encoding.discard(given_up)
            self._settle()

    def deal(self, output: pb.RequestOutput) -> None:
        """Gives an output to the request that it is of; whoever has left gets none."""
        ended = output.WhichOneof("output") in ("completed", "failure")
        stream = (self.forget if ended else self._streams.get)(output.request_id)
        if stream:
            stream.put(output)

    def forget(self, request_id: str) -> OutputStream | None:
        """Counts a request no more; gives its stream if the engine has it."""
        self._expected.pop(request_id, None)
        stream = self._streams.pop(request_id, None)
        self._settle()
        return stream

    async def wait(self, seconds: float) -> None:
        """Waits until there is none, so many seconds at most."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), seconds)

    def fail(self, error: errors.SllmError) -> list[str]:
        """Fails all that are left; gives the ids of those that are still to be forgotten."""
        ids = [*self._expected, *self._streams]
        for stream in [*self._expected.values(), *self._streams.values()]:
            stream.fail(error)
        for encoding in self._encoding:
            if not encoding.done():
                encoding.set_result(error)
        return ids

    def _settle(self) -> None:
        if not len(self):
            self._idle.set()
