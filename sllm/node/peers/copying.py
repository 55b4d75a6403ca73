"""A checkpoint that other nodes hold, copied from them as it is: by its digest, without a source.

By blocking calls in a thread, as chunks come; see `link`. Nobody waits for it, so that one node at
a time is asked for one thing at a time.
"""

from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any, Final, TypeVar

import grpc
import structlog
import xxhash
from serverlessllm.v1 import peer_service_pb2 as pb
from serverlessllm.v1.peer_service_pb2_grpc import PeerServiceStub

from sllm.checkpoint.files.direct_io import flush_directory
from sllm.checkpoint.files.small_file import write_small_file
from sllm.checkpoint.format.manifest import FileEntry, Manifest, PartitionEntry
from sllm.checkpoint.format.manifest_file import write_manifest
from sllm.checkpoint.saving.partition_writer import MemoryOf, PartitionWriter, ring
from sllm.errors import Cancelled, CheckpointNotFound
from sllm.node.peers.link import FAILURES, problem_of
from sllm.node.peers.manifests import CopyTerms, manifest_to_copy
from sllm.node.peers.types import Network, Peer, Peers
from sllm.process import give_way

_MANIFEST_SECONDS: Final = 10.0
"""What a node may take to say what the checkpoint consists of."""
_PART_SECONDS: Final = 60.0
"""The same to give a chunk or a small file, its own loads before it."""

Given = TypeVar("Given")

_log = structlog.get_logger()


class Copying:
    """One copy. It can be ended from any thread."""

    def __init__(self, network: Network, peers: Peers, terms: CopyTerms) -> None:
        """Calls nobody yet.

        Args:
            network: leads to the other nodes.
            peers: those that hold the checkpoint, the first one to be asked first, and its digest.
            terms: what it must be.
        """
        self._network = network
        self._digest = peers.digest
        self._givers = list(peers.peers)
        self._terms = terms
        self._channels: dict[str, grpc.Channel] = {}
        """By address."""
        self._call: grpc.Call | None = None
        self._lock = Lock()
        self._begun = self._ended = False

    def end(self) -> bool:
        """Ends it, if it has not ended by itself.

        Returns:
            Whether it had begun: it may write until `write` has returned. Otherwise it never does.
        """
        with self._lock:
            self._ended = True
            if self._call is not None:
                self._call.cancel()
            return self._begun

    def write(self, directory: Path) -> Manifest:
        """Writes the checkpoint, each part against its digest, flushed to the disk.

        Where a node fails, another one goes on: all give the same.

        Args:
            directory: does not exist yet.

        Raises:
            CheckpointNotFound: no node gives it, or what they give is not what it must be.
            Cancelled: it was ended.
            OSError: the disk is full, or fails.
        """
        with self._lock:
            self._begun = not self._ended
        give_way()
        try:
            return self._write(directory)
        finally:
            for channel in self._channels.values():
                channel.close()

    def _write(self, directory: Path) -> Manifest:
        manifest = self._given(self._manifest)
        directory.mkdir()
        memory, first = ring(self._terms.chunk_bytes), 0
        with ThreadPoolExecutor(1, "chunk-write") as background:
            for entry in manifest.partitions:
                self._partition(directory, entry, first, memory, background)
                first += entry.chunk_count
        for file in manifest.files:
            write_small_file(directory / file.name, self._file(file))
        write_manifest(directory, manifest)
        flush_directory(directory)
        return manifest

    def _given(self, ask: Callable[[Peer], Given]) -> Given:
        """What the first node gives that gives it as it must be; those before are done without."""
        while self._givers:
            self._check()
            giver = self._givers[0]
            try:
                return ask(giver)
            except FAILURES as error:
                self._check()
                problem = problem_of(error)
                _log.info("peer.copy_failed", node=giver.node_id, problem=problem)
                del self._givers[0]
        raise CheckpointNotFound(f"no other node gives the checkpoint {self._digest}")

    def _check(self) -> None:
        if self._ended:
            raise Cancelled("the copy of a checkpoint has given way")

    def _stub(self, giver: Peer) -> PeerServiceStub:
        channel = self._channels.get(giver.address)
        if channel is None:
            channel = self._channels[giver.address] = self._network.dial(giver.address)
        return PeerServiceStub(channel)

    def _begin(self, call: Any) -> Any:
        with self._lock:
            self._call = call
            if self._ended:
                call.cancel()
        return call

    def _manifest(self, giver: Peer) -> Manifest:
        request = pb.FollowChunksRequest(origin=self._origin, wants_manifest=True)
        news = self._begin(self._stub(giver).FollowChunks(request, timeout=_MANIFEST_SECONDS))
        try:
            encoded = next((one.manifest for one in news if one.manifest), b"")
        finally:
            news.cancel()
        return manifest_to_copy(encoded, self._digest, self._terms)

    @property
    def _origin(self) -> pb.CheckpointOrigin:
        return pb.CheckpointOrigin(digest=self._digest)

    def _partition(
        self, directory: Path, entry: PartitionEntry, first: int, memory: MemoryOf, disk: Executor
    ) -> None:
        path = directory / entry.file
        with PartitionWriter(path, entry.size, entry.chunk_size, memory, disk) as writer:
            for index, digest in enumerate(entry.digests):
                request = pb.FetchRequest(origin=self._origin, chunk=first + index)
                room = writer.room()
                self._given(lambda giver: self._fill(giver, request, room, digest))  # noqa: B023
                writer.advance(len(room))
            writer.finish()

    def _file(self, entry: FileEntry) -> bytes:
        content = bytearray(entry.size)
        request = pb.FetchRequest(origin=self._origin, file=entry.name)
        self._given(lambda giver: self._fill(giver, request, memoryview(content), entry.digest))
        return bytes(content)

    def _fill(self, giver: Peer, request: pb.FetchRequest, room: memoryview, digest: str) -> None:
        call = self._begin(self._stub(giver).Fetch(request, timeout=_PART_SECONDS))
        got = 0
        try:
            for message in call:
                data = message.data
                if len(data) > len(room) - got:
                    raise ValueError("more has come than was asked for")
                room[got : got + len(data)] = data
                got += len(data)
        finally:
            call.cancel()
        if got < len(room) or xxhash.xxh3_128_hexdigest(room) != digest:
            raise ValueError("what has come is not what its digest says")
