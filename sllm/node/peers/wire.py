"""What nodes say to one another of chunks, from and to the protocol's messages."""

from collections.abc import Iterable, Iterator, Mapping

from serverlessllm.v1 import peer_service_pb2 as pb
from serverlessllm.v1 import types_pb2 as types_pb

from sllm import bounds, errors
from sllm.node.peers.news import News
from sllm.node.peers.types import Peer
from sllm.node.tiers.checkpoints import SourceRecord
from sllm.node.tiers.types import Tier

_DIGEST_BYTES = 16
_MOST_CHUNKS = 1 << 20
"""Of a checkpoint: what says that there are more is wrong, and would fill the memory."""


def origin_message(record: SourceRecord) -> pb.CheckpointOrigin:
    """What a checkpoint came from."""
    return pb.CheckpointOrigin(
        source=record.url,
        fingerprint=record.fingerprint,
        dtype=record.dtype or "",
        form=record.form,
    )


def origin_record(message: pb.CheckpointOrigin) -> SourceRecord:
    """As `origin_message` writes it.

    Raises:
        errors.InvalidArgument: It names no source.
    """
    if not message.source:
        raise errors.InvalidArgument("origin.source is empty: name what the checkpoint came from")
    return SourceRecord(
        message.source, message.fingerprint, message.dtype or None, form=message.form
    )


def caller(request: pb.FollowChunksRequest) -> Peer | None:
    """Who follows, if it is getting the checkpoint as well.

    Raises:
        errors.InvalidArgument: It has no name, or no address.
    """
    if not request.HasField("caller"):
        return None
    if not request.caller.node_id:
        raise errors.InvalidArgument("caller.node_id is empty; a node has a name of its own")
    name = bounds.name(request.caller.node_id, "caller.node_id")
    return Peer(name, bounds.address(request.caller.address, "caller.address"), fellow=True)


def news_message(news: News) -> pb.FollowChunksResponse:
    """What has come."""
    return pb.FollowChunksResponse(
        tier=types_pb.Tier.ValueType(news.tier),
        whole=news.whole,
        arrived=_ranges(news.arrived),
        begun=_ranges(news.begun),
        manifest=news.manifest,
        digests=b"".join(bytes.fromhex(news.arrived[chunk]) for chunk in sorted(news.arrived)),
        layout=news.layout,
        left=_left_message(news.left),
        asks=news.asks,
    )


def _left_message(left: Mapping[int, str]) -> Iterator[pb.LeftChunks]:
    for name in sorted(set(left.values())):
        for chunks in _ranges(chunk for chunk, to in left.items() if to == name):
            yield pb.LeftChunks(chunks=chunks, node_id=name)


def news(message: pb.FollowChunksResponse) -> News:
    """What another node says.

    Raises:
        ValueError: It makes no sense.
    """
    return News(
        Tier(message.tier),
        message.whole,
        _digested(message),
        tuple(_chunks(message.begun)),
        message.manifest,
        _left(message.left),
        message.asks,
        message.layout,
    )


def _digested(message: pb.FollowChunksResponse) -> Mapping[int, str]:
    arrived, digests = list(_chunks(message.arrived)), message.digests
    if not digests:  # by a node of an earlier version
        return dict.fromkeys(arrived, "")
    if len(digests) != len(arrived) * _DIGEST_BYTES:
        raise ValueError(f"{len(digests)} bytes are not the digests of {len(arrived)} chunks")
    starts = range(0, len(digests), _DIGEST_BYTES)
    found = (digests[start : start + _DIGEST_BYTES].hex() for start in starts)
    return dict(zip(arrived, found, strict=True))


def _left(message: Iterable[pb.LeftChunks]) -> Mapping[int, str]:
    left = list(message)
    names = (one.node_id for one in left for _ in range(one.chunks.count))
    return dict(zip(_chunks(one.chunks for one in left), names, strict=False))


def _ranges(chunks: Iterable[int]) -> Iterator[pb.ChunkRange]:
    open_range: pb.ChunkRange | None = None
    for chunk in sorted(chunks):
        if open_range is not None and chunk == open_range.first + open_range.count:
            open_range.count += 1
            continue
        if open_range is not None:
            yield open_range
        open_range = pb.ChunkRange(first=chunk, count=1)
    if open_range is not None:
        yield open_range


def _chunks(ranges: Iterable[pb.ChunkRange]) -> Iterator[int]:
    left = _MOST_CHUNKS
    for one in ranges:
        left -= one.count
        if one.first < 0 or not 0 < one.count <= _MOST_CHUNKS - one.first or left < 0:
            raise ValueError(f"chunks {one.first} and {one.count} that follow are none")
        yield from range(one.first, one.first + one.count)
