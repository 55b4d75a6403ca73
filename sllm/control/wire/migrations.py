"""What is told of migrations, as the protocol's messages."""

from serverlessllm.v1 import cluster_service_pb2 as pb
from serverlessllm.v1 import types_pb2 as types_pb

from sllm.control.types.migrations import (
    CacheMove,
    Chosen,
    Ended,
    Moved,
    MoveWay,
    News,
    Round,
    Stayed,
)
from sllm.control.types.status import Loading
from sllm.control.wire import common


def migrate_response(news: News) -> pb.MigrateResponse:
    """What is told of a migration."""
    match news:
        case Chosen():
            return pb.MigrateResponse(chosen=_chosen(news))
        case Loading():
            return pb.MigrateResponse(loading=common.loading_message(news))
        case Round():
            return pb.MigrateResponse(round=_round(news))
        case Moved():
            return pb.MigrateResponse(moved=_moved(news))
        case Stayed(request_id, error):
            stayed = pb.MigrateStayed(
                request_id=request_id, reason=error.reason, message=error.message
            )
            return pb.MigrateResponse(stayed=stayed)
        case Ended(request_id):
            return pb.MigrateResponse(ended=pb.MigrateEnded(request_id=request_id))


def _chosen(news: Chosen) -> pb.MigrateChosen:
    return pb.MigrateChosen(
        node_id=news.node_id,
        instance_id=news.instance_id,
        started=news.started,
        estimate=common.optional_duration(news.estimate),
    )


def _round(news: Round) -> pb.MigrateRound:
    return pb.MigrateRound(
        request_id=news.request_id,
        number=news.number,
        computed_tokens=news.computed_tokens,
        gap_tokens=news.gap_tokens,
    )


def _moved(news: Moved) -> pb.MigrateMoved:
    return pb.MigrateMoved(
        request_id=news.request_id,
        rounds=news.rounds,
        tokens=news.tokens,
        duration=common.duration(news.seconds),
        cutover=common.duration(news.cutover_seconds),
        gap_tokens=news.gap_tokens,
        cache=cache_message(news.cache),
    )


def cache_move(message: types_pb.CacheMove) -> CacheMove | None:
    """What a node says of how a KV cache has come. None: nothing."""
    if message.way not in {one.value for one in MoveWay}:
        return None
    return CacheMove(
        way=MoveWay(message.way),
        by_tokens=common.seconds(message.by_tokens) if message.HasField("by_tokens") else None,
        by_pages=common.seconds(message.by_pages) if message.HasField("by_pages") else None,
        page_tokens=message.page_tokens,
        page_bytes=message.page_bytes,
        took=common.seconds(message.took),
        why=message.why,
    )


def cache_message(cache: CacheMove | None) -> types_pb.CacheMove | None:
    """The same, for those who follow."""
    if cache is None:
        return None
    return types_pb.CacheMove(
        way=types_pb.MoveWay.ValueType(cache.way),
        by_tokens=common.optional_duration(cache.by_tokens),
        by_pages=common.optional_duration(cache.by_pages),
        page_tokens=cache.page_tokens,
        page_bytes=cache.page_bytes,
        took=common.duration(cache.took),
        why=cache.why,
    )
