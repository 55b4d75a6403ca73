"""Migrations, as the control plane tells of them."""

from collections.abc import AsyncIterable, Callable

from serverlessllm.v1 import cluster_service_pb2 as pb

from sllm import errors
from sllm.client.types import enums, events, migrations
from sllm.client.wire.events import cache_move, progress
from sllm.client.wire.values import seconds


async def migration(
    messages: AsyncIterable[pb.MigrateResponse],
    on_progress: Callable[[events.Progress], None] | None,
    *,
    alone: bool,
) -> migrations.Migration:
    """What has come of a migration; `alone`: of one request, whose staying is an error.

    Raises:
        errors.SllmError: Why that one has stayed.
    """
    chosen = pb.MigrateChosen()
    outcomes: list[migrations.RequestMigration] = []
    async for message in messages:
        match message.WhichOneof("event"):
            case "chosen":
                chosen = message.chosen
            case "loading" if on_progress:
                on_progress(progress(message.loading))
            case "moved":
                outcomes.append(_moved(message.moved))
            case "stayed":
                outcomes.append(_stayed(message.stayed, alone=alone))
            case "ended":
                ended = enums.MigrationOutcome.ENDED
                outcomes.append(migrations.RequestMigration(message.ended.request_id, ended))
    return migrations.Migration(
        node_id=chosen.node_id,
        instance_id=chosen.instance_id,
        started=chosen.started,
        requests=tuple(outcomes),
        estimate=seconds(chosen.estimate) if chosen.HasField("estimate") else None,
    )


def _moved(moved: pb.MigrateMoved) -> migrations.RequestMigration:
    return migrations.RequestMigration(
        request_id=moved.request_id,
        outcome=enums.MigrationOutcome.MOVED,
        rounds=moved.rounds,
        tokens=moved.tokens,
        duration=seconds(moved.duration),
        cutover=seconds(moved.cutover),
        gap=moved.gap_tokens,
        cache=cache_move(moved.cache) if moved.HasField("cache") else None,
    )


def _stayed(stayed: pb.MigrateStayed, *, alone: bool) -> migrations.RequestMigration:
    if alone:
        raise errors.make_error(errors.Code.INTERNAL, stayed.reason, stayed.message)
    return migrations.RequestMigration(
        request_id=stayed.request_id,
        outcome=enums.MigrationOutcome.STAYED,
        reason=stayed.reason,
        message=stayed.message,
    )
