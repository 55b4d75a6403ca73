"""What `sllm migrate` asks for, prints, and how it ends."""

import json

import pytest
from serverlessllm.v1 import cluster_service_pb2 as pb

from sllm import errors
from tests.cli.conftest import Run
from tests.client.fake_control import FakeControl
from tests.client.test_migrate import CHOSEN, ENDED, LOADING, MOVED, ROUND, STAYED


def test_an_instance_is_moved_and_every_request_told(control: FakeControl, run: Run) -> None:
    control.reply("Migrate", CHOSEN, LOADING, ROUND, MOVED, STAYED, ENDED)
    outcome = run("migrate", "i-1", "--to", "n-2")
    assert outcome.code == 0
    assert control.requests["Migrate"] == [pb.MigrateRequest(instance_id="i-1", to_node_id="n-2")]
    table = " ".join(outcome.out.split())
    assert "r-1 MOVED 1 9 PAGES, of" in table
    assert "5 ms 1000 ms" in table
    assert "r-2 STAYED it does not answer" in table
    assert "r-3 ENDED" in table
    assert "to i-2 on n-2 in 1000 ms, expected 800 ms" in table


def test_what_was_not_known_is_not_shown(control: FakeControl, run: Run) -> None:
    chosen = pb.MigrateChosen(node_id="n-2", instance_id="i-2")
    control.reply("Migrate", pb.MigrateResponse(chosen=chosen), MOVED)
    outcome = run("migrate", "--request", "r-1")
    assert control.requests["Migrate"] == [pb.MigrateRequest(request_id="r-1")]
    assert "in 1000 ms, not known before" in " ".join(outcome.out.split())


def test_json_has_all_of_it(control: FakeControl, run: Run) -> None:
    control.reply("Migrate", CHOSEN, MOVED)
    told = json.loads(run("migrate", "i-1", "--json").out)
    assert told["node_id"] == "n-2"
    assert told["estimate"] == 0.8
    (request,) = told["requests"]
    assert (request["outcome"], request["tokens"], request["gap"]) == ("MOVED", 9, 3)


@pytest.mark.parametrize(
    "error",
    [
        errors.RequestNotFound("no request 'r-1' is being generated"),
        errors.InstanceNotFound("instance 'i-1' is not there"),
        errors.NodeNotFound("node 'n-9' is not there"),
        errors.InvalidArgument("r-1 is on n-1 already"),
        errors.NoCapacity("no other node has room for tiny: n-2: too small"),
    ],
)
def test_what_is_refused_is_said_and_fails(
    control: FakeControl, run: Run, error: errors.SllmError
) -> None:
    control.reply("Migrate", error)
    outcome = run("migrate", "--request", "r-1")
    assert outcome.code != 0
    assert error.message in " ".join(outcome.err.split())
    assert outcome.out == ""


@pytest.mark.parametrize("named", [(), ("i-1", "--request", "r-1")])
def test_one_of_both_is_named(control: FakeControl, run: Run, named: tuple[str, ...]) -> None:
    outcome = run("migrate", *named)
    assert outcome.code == 2
    assert "name an instance, or one request with --request" in " ".join(outcome.err.split())
    assert not control.requests["Migrate"]
