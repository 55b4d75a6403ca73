"""The way to one other node: what it says of its chunks, and the chunks themselves.

By blocking calls, in the threads of imports: a gigabyte a second in messages of a mebibyte would
leave an event loop time for little else.
"""

from collections.abc import Callable
from threading import Thread
from typing import Any, Final

import grpc
import structlog
from serverlessllm.v1 import peer_service_pb2 as pb
from serverlessllm.v1.peer_service_pb2_grpc import PeerServiceStub

from sllm.node.peers import wire
from sllm.node.peers.flights import Flight
from sllm.node.peers.news import News
from sllm.node.peers.types import Network, Peer
from sllm.node.tiers.checkpoints import SourceRecord
from sllm.process import give_way

_log = structlog.get_logger()


FAILURES: Final = (grpc.RpcError, ValueError)
"""What calls end with where the other node is gone, refuses them, or says what makes no sense."""


class Link:
    """To one other node, for one checkpoint."""

    def __init__(
        self, peer: Peer, record: SourceRecord, network: Network, clock: Callable[[], float]
    ) -> None:
        """Connects with the first call."""
        self.peer = peer
        self.was_heard = False
        """Whether it has ever said anything."""
        self.rate = 0.0
        """Bytes per second of the last chunk that has come from it. 0: none has."""
        self._silent_since: float | None = None
        """None: it is not to be heard of, or what it has said is being taken in."""
        self._clock = clock
        self._origin = wire.origin_message(record)
        self._network = network
        self._channel = network.dial(peer.address)
        self._stub = PeerServiceStub(self._channel)
        self._following: grpc.Call | None = None
        self._closed = False
        self._thread: Thread | None = None

    def follow(
        self, told: Callable[[News], None], ended: Callable[[], None], *, wants_manifest: bool
    ) -> None:
        """Has `told` called with whatever the node says, in a thread; `ended` once it has ended."""
        run = lambda: self._follow(told, ended, wants_manifest=wants_manifest)  # noqa: E731
        self._thread = Thread(target=run, name=f"peer-follow {self.peer.node_id}", daemon=True)
        self._thread.start()

    def _follow(
        self, told: Callable[[News], None], ended: Callable[[], None], *, wants_manifest: bool
    ) -> None:
        give_way()
        whole = False
        try:
            whole = self._hear(told, wants_manifest=wants_manifest)
        except FAILURES as error:
            if not self._closed:
                _log.info("peer.lost", node=self.peer.node_id, problem=problem_of(error))
        except Exception:  # whoever is not heard any more must not be waited for
            _log.exception("peer.not_understood", node=self.peer.node_id)
        self._silent_since = None
        if not whole:
            ended()

    def _hear(self, told: Callable[[News], None], *, wants_manifest: bool) -> bool:
        """Whether the node has come to have all."""
        request = pb.FollowChunksRequest(
            origin=self._origin,
            wants_manifest=wants_manifest,
        )
        if self.peer.fellow and self._network.address:
            request.caller.node_id = self._network.node_id
            request.caller.address = self._network.address
        call = self._stub.FollowChunks(request)
        self._following = call
        if self._closed:
            call.cancel()
        whole = False
        self._silent_since = self._clock()
        for message in call:
            self._silent_since, self.was_heard = None, True
            news = wire.news(message)
            whole = news.whole
            told(news)
            self._silent_since = self._clock()
        return whole

    def silence(self, now: float) -> float:
        """Seconds for which it has said nothing of its chunks, and should have."""
        since = self._silent_since
        return 0.0 if since is None else now - since

    def fetch(self, flight: Flight, memory: memoryview, check: Callable[[], object]) -> bool:
        """Fills the rest of a chunk's memory, from `flight.got` on; whether all of it has come.

        Args:
            flight: what comes; it can be called back meanwhile.
            memory: the chunk's.
            check: called with every message; may raise.
        """
        request = pb.FetchRequest(origin=self._origin, chunk=flight.chunk, offset=flight.got)
        try:
            self._fill(self._stub.Fetch(request), flight, memory, check)
        except FAILURES as error:
            _log.info("peer.chunk_failed", node=self.peer.node_id, problem=problem_of(error))
        whole = flight.got == flight.size
        if whole:
            self.rate = flight.rate(self._clock())
        return whole

    def _fill(
        self, call: Any, flight: Flight, memory: memoryview, check: Callable[[], object]
    ) -> None:
        flight.begin(call)
        try:
            for message in call:
                check()
                data = message.data
                if len(data) > flight.size - flight.got:
                    raise ValueError("a chunk is longer than it can be")
                memory[flight.got : flight.got + len(data)] = data
                flight.add(len(data), self._clock())
        finally:
            call.cancel()

    def close(self) -> None:
        """Ends what is under way."""
        self._closed = True
        if self._following is not None:
            self._following.cancel()
        self._channel.close()

    def join(self) -> None:
        """Returns once its thread has ended, after `close`."""
        if self._thread is not None:
            self._thread.join()


def problem_of(error: Exception) -> str:
    """Why a call has failed."""
    if isinstance(error, grpc.Call):
        return f"{error.code().name}: {error.details()}"
    return str(error)
