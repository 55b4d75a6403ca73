"""Pages of KV caches on their way from another node.

By a blocking call in a thread, as chunks come; see `link`.
"""

from collections.abc import Sequence
from threading import Lock
from typing import Final

import grpc
import structlog
import xxhash
from serverlessllm.v1 import peer_service_pb2 as pb
from serverlessllm.v1.peer_service_pb2_grpc import PeerServiceStub

from sllm.node.peers.link import FAILURES, problem_of
from sllm.node.peers.types import Network, Peer

_LEAST_SECONDS: Final = 0.001
"""Of a call's time: gRPC takes none that has passed."""

_log = structlog.get_logger()


class PageCall:
    """One call for pages. It can be ended from any thread."""

    def __init__(
        self, network: Network, giver: Peer, keys: Sequence[bytes], page_bytes: int
    ) -> None:
        """Calls nobody yet.

        Args:
            network: leads to the other node.
            giver: the other node.
            keys: of the pages; see `sllm.node.worker.page_keys`.
            page_bytes: of each.
        """
        self._network = network
        self._giver = giver
        self._keys = keys
        self._page_bytes = page_bytes
        self._call: grpc.Call | None = None
        self._lock = Lock()
        self._begun = self._ended = False

    def fill(self, into: Sequence[memoryview], seconds: float) -> list[bytes]:
        """Takes what comes in this time; gives the digests of the pages that have come whole.

        Those are the first ones, and each is what its digest says. What ends the call is no error:
        what has not come is not there.

        Args:
            into: for each key, where its page goes.
            seconds: what all of it may take.
        """
        with self._lock:
            if self._ended:
                return []
            self._begun = True
        filling = Filling(into, self._page_bytes)
        request = pb.FetchPagesRequest(keys=self._keys, page_bytes=self._page_bytes)
        channel = self._network.dial(self._giver.address)
        try:
            call = PeerServiceStub(channel).FetchPages(
                request, timeout=max(seconds, _LEAST_SECONDS)
            )
            self._call = call
            if self._ended:
                call.cancel()
            for message in call:
                filling.take(message)
        except FAILURES as error:
            problem = problem_of(error)
            _log.info("peer.pages_failed", node=self._giver.node_id, problem=problem)
        finally:
            channel.close()  # with the call, if that goes on
        return filling.whole

    def end(self) -> bool:
        """Ends it, if it has not ended by itself.

        Returns:
            Whether it had begun: it may write until `fill` has returned. Otherwise it never does.
        """
        with self._lock:
            self._ended = True
        if self._call is not None:
            self._call.cancel()
        return self._begun


class Filling:
    """Puts bytes that follow one another where pages go, and holds each page against its digest."""

    def __init__(self, into: Sequence[memoryview], page_bytes: int) -> None:
        self.whole: list[bytes] = []
        """Digests of the pages that have come."""
        self._into = into
        self._page_bytes = page_bytes
        self._digests: list[bytes] = []
        self._offset = 0
        """In the page that is coming."""
        self._hash = xxhash.xxh3_128()

    def take(self, message: pb.FetchPagesResponse) -> None:
        """Takes a message in.

        Raises:
            ValueError: It makes no sense, or a page is not what its digest says.
        """
        self._digests += message.digests
        data = memoryview(message.data)
        while data:
            if len(self.whole) == len(self._into):
                raise ValueError("more pages have come than were asked for")
            part, data = self._split(data)
            self._into[len(self.whole)][self._offset : self._offset + len(part)] = part
            self._hash.update(part)
            self._offset += len(part)
            if self._offset == self._page_bytes:
                self._end_page()

    def _split(self, data: memoryview) -> tuple[memoryview, memoryview]:
        room = self._page_bytes - self._offset
        return data[:room], data[room:]

    def _end_page(self) -> None:
        digest, index = self._hash.digest(), len(self.whole)
        if self._digests[index : index + 1] != [digest]:
            raise ValueError(f"page {index} is not what its digest says")
        self.whole.append(digest)
        self._offset = 0
        self._hash.reset()
