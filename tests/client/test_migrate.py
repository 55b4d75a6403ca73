"""What a migration tells its operator."""

from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from serverlessllm.v1 import cluster_service_pb2 as pb
from serverlessllm.v1 import types_pb2 as types

import sllm
from sllm import errors
from tests.client.fake_control import FakeControl
from tests.client.messages import CACHE_MOVE, MOVED_CACHE

CHOSEN = pb.MigrateResponse(
    chosen=pb.MigrateChosen(
        node_id="n-2", instance_id="i-2", started=True, estimate=Duration(nanos=800_000_000)
    )
)
LOADING = pb.MigrateResponse(
    loading=types.Loading(phase=types.LOAD_PHASE_READ, loaded_bytes=1, total_bytes=4)
)
ROUND = pb.MigrateResponse(round=pb.MigrateRound(request_id="r-1", number=1, computed_tokens=9))
MOVED = pb.MigrateResponse(
    moved=pb.MigrateMoved(
        request_id="r-1",
        rounds=1,
        tokens=9,
        duration=Duration(seconds=1),
        cutover=Duration(nanos=5_000_000),
        gap_tokens=3,
        cache=CACHE_MOVE,
    )
)
STAYED = pb.MigrateResponse(
    stayed=pb.MigrateStayed(request_id="r-2", reason="NODE_LOST", message="it does not answer")
)
ENDED = pb.MigrateResponse(ended=pb.MigrateEnded(request_id="r-3"))


@pytest.fixture
def client(control: FakeControl) -> Any:
    with sllm.Client(control.address) as client:
        yield client


def test_an_instance_is_moved(control: FakeControl, client: sllm.Client) -> None:
    control.reply("Migrate", CHOSEN, LOADING, ROUND, MOVED, STAYED, ENDED)
    progress: list[sllm.Progress] = []

    migration = client.migrate(instance_id="i-1", to_node="n-2", on_progress=progress.append)

    assert migration == sllm.Migration(
        node_id="n-2",
        instance_id="i-2",
        started=True,
        requests=(
            sllm.RequestMigration(
                "r-1",
                sllm.MigrationOutcome.MOVED,
                rounds=1,
                tokens=9,
                duration=1.0,
                cutover=0.005,
                gap=3,
                cache=MOVED_CACHE,
            ),
            sllm.RequestMigration(
                "r-2",
                sllm.MigrationOutcome.STAYED,
                reason="NODE_LOST",
                message="it does not answer",
            ),
            sllm.RequestMigration("r-3", sllm.MigrationOutcome.ENDED),
        ),
        estimate=0.8,
    )
    assert migration.duration == 1.0
    assert [one.loaded_bytes for one in progress] == [1]
    (request,) = control.requests["Migrate"]
    assert request == pb.MigrateRequest(instance_id="i-1", to_node_id="n-2")


def test_one_request_that_stays_is_an_error(control: FakeControl, client: sllm.Client) -> None:
    control.reply("Migrate", CHOSEN, STAYED)
    with pytest.raises(errors.NodeLost, match="does not answer"):
        client.migrate(request_id="r-2")
    (request,) = control.requests["Migrate"]
    assert request == pb.MigrateRequest(request_id="r-2")


@pytest.mark.parametrize("named", [{}, {"request_id": "r", "instance_id": "i"}])
def test_exactly_one_is_named(client: sllm.Client, named: dict[str, str]) -> None:
    with pytest.raises(errors.InvalidArgument):
        client.migrate(**named)  # type: ignore[arg-type]  # by name
