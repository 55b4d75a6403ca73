"""What is told of migrations, as the protocol's messages."""

from serverlessllm.v1 import cluster_service_pb2 as pb

from sllm.control.types.migrations import Chosen, Ended, Moved, News, Round, Stayed
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
    )
