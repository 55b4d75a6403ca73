"""What the commands print, and how they end."""

import json
import os
from importlib.metadata import version

import pytest
import typer
from google.protobuf.timestamp_pb2 import Timestamp
from serverlessllm.v1 import cluster_service_pb2 as cluster_pb
from serverlessllm.v1 import deployment_service_pb2 as pb
from serverlessllm.v1 import types_pb2 as types

from sllm import errors
from sllm.cli.app import app
from tests.cli.conftest import Run
from tests.client.fake_control import FakeControl
from tests.client.messages import QUEUED, deployment, generation, samples

MIB = 1024 * 1024
PREPARING = deployment(
    "other",
    pb.DEPLOYMENT_STATE_PREPARING,
    loading=types.Loading(phase=types.LOAD_PHASE_IMPORT, loaded_bytes=1, total_bytes=4),
)
FAILED = deployment("broken", pb.DEPLOYMENT_STATE_FAILED, message="the disk is full")
INSTANCE = types.Instance(
    instance_id="i-1",
    deployment="tiny",
    node_id="n-1",
    state=types.INSTANCE_STATE_READY,
    running_requests=2,
    kv_bytes=64 * MIB,
    started_at=Timestamp(seconds=5),
    worker_pid=7,
    engine="vllm",
    own_bytes=30 * MIB,
)
NODE = types.Node(
    node_id="n-1",
    address="host:1",
    tiers=[
        types.TierUsage(tier=types.TIER_SSD, capacity_bytes=4 * MIB, used_bytes=MIB),
        types.TierUsage(tier=types.TIER_DRAM, capacity_bytes=2 * MIB, used_bytes=MIB // 2),
    ],
    kv_capacity_bytes=10,
    kv_used_bytes=4,
    engines=[types.NodeEngine(name="vllm", ready=True)],
    memory=types.NodeMemory(capacity_bytes=2 * MIB, used_bytes=MIB),
    copies=[types.CheckpointCopy(digest="abc", tier=tier) for tier in (1, 2)],  # type: ignore[arg-type]  # ints
)


def _commands(app: typer.Typer) -> list[str]:
    """The names of all commands."""
    callbacks = (one.callback for one in app.registered_commands if one.callback)
    return [one.__name__.replace("_", "-") for one in callbacks]


@pytest.fixture
def listed(control: FakeControl) -> None:
    deployments = [deployment(ready_instances=1, queued_requests=3), PREPARING, FAILED]
    control.reply("ListDeployments", pb.ListDeploymentsResponse(deployments=deployments))
    control.reply("ListInstances", cluster_pb.ListInstancesResponse(instances=[INSTANCE]))
    control.reply("ListNodes", cluster_pb.ListNodesResponse(nodes=[NODE]))


def rows(out: str) -> list[list[str]]:
    """The rows under the heading, in words."""
    return [line.split() for line in out.splitlines()[1:]]


def test_brackets_are_shown_as_they_are(run: Run, control: FakeControl) -> None:
    message = "[Errno 28] there is no [dim] space"
    failed = deployment("broken", pb.DEPLOYMENT_STATE_FAILED, message=message)
    control.reply("ListDeployments", pb.ListDeploymentsResponse(deployments=[failed]))
    assert f"FAILED: {message}" in run("ls").out


def test_ls(run: Run, listed: None) -> None:
    tiny, other, broken = rows(run("ls").out)

    assert tiny == [
        "tiny",
        "AVAILABLE",
        "generate",
        "vllm",
        "1/2",
        "3",
        "0.5",
        "of",
        "1.5",
        "s",
        "4.0",
        "KiB",
        "file:///models/tiny",
    ]
    assert other[:4] == ["other", "PREPARING", "25%", "generate"]
    assert " ".join(broken).startswith("broken FAILED: the disk is full generate vllm 0/2")


def test_ps(run: Run, listed: None) -> None:
    (row,) = rows(run("ps").out)

    found = " ".join(row[:11])
    assert found == "i-1 tiny vllm n-1 READY 2 64.0 MiB 30.0 MiB 7"


def test_nodes_in_zones(run: Run, control: FakeControl) -> None:
    there = types.Node(node_id="n-2", address="host:2", zone="edge")
    control.reply("ListNodes", cluster_pb.ListNodesResponse(nodes=[NODE, there]))
    anywhere, edge = rows(run("nodes").out)
    assert (anywhere[:3], edge[:3]) == (["n-1", "host:1", "-"], ["n-2", "host:2", "edge"])


def test_nodes(run: Run, listed: None) -> None:
    (row,) = rows(run("nodes").out)

    assert " ".join(row) == (
        "n-1 host:1 1.0 MiB 3.0 MiB 512.0 KiB 1.5 MiB 4 B 6 B 1.0 MiB/2.0 MiB 1 vllm -"
    )


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("ls", {"name": "tiny", "state": "AVAILABLE", "keep_alive": 1.5, "queued_requests": 3}),
        ("ps", {"instance_id": "i-1", "state": "READY", "worker_pid": 7, "started_at": 5.0}),
        ("nodes", {"node_id": "n-1", "kv_used_bytes": 4, "init_time": None}),
    ],
)
def test_listings_as_json(
    run: Run, listed: None, command: str, expected: dict[str, object]
) -> None:
    first = json.loads(run(command, "--json").out)[0]

    assert {name: first[name] for name in expected} == expected


def test_an_empty_listing_is_an_empty_list(run: Run, control: FakeControl) -> None:
    control.reply("ListDeployments", pb.ListDeploymentsResponse())

    assert json.loads(run("ls", "--json").out) == []


def test_deploy(run: Run, control: FakeControl) -> None:
    control.reply("Deploy", pb.DeployResponse(deployment=PREPARING))
    messages = [pb.WatchDeploymentResponse(deployment=one) for one in (PREPARING, deployment())]
    control.reply("WatchDeployment", *messages)

    outcome = run(
        "deploy", "tiny", "file:///models/tiny", "--keep-alive", "1.5", "--max-replicas=2"
    )

    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == "tiny: LlamaForCausalLM, 4.0 KiB, on vllm, AVAILABLE\n"
    (request,) = control.requests["Deploy"]
    assert request.scaling.keep_alive.ToMilliseconds() == 1500
    assert request.scaling.max_replicas == 2


def test_lengths_of_time_are_written_with_their_units(run: Run, control: FakeControl) -> None:
    control.reply("Deploy", pb.DeployResponse(deployment=deployment()))
    run("deploy", "tiny", "file:///models/tiny", "--keep-alive", "10m", "--timeout", "5s")
    (request,) = control.requests["Deploy"]
    assert request.scaling.keep_alive.ToSeconds() == 600
    assert run("deploy", "tiny", "file:///models/tiny", "--keep-alive", "soon").code == 2


def test_the_version_is_told(run: Run) -> None:
    assert run("--version").out == f"{version('sllm')}\n"


def test_deploy_takes_a_path(
    run: Run, control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    control.reply("Deploy", pb.DeployResponse(deployment=deployment()))

    run("deploy", "tiny", "models/tiny", "--no-wait")

    assert control.requests["Deploy"][0].source == "/models/tiny"


def test_rm(run: Run, control: FakeControl) -> None:
    control.reply("DeleteDeployment", pb.DeleteDeploymentResponse())

    assert run("rm", "tiny").code == 0
    assert control.requests["DeleteDeployment"][0].name == "tiny"

    control.reply("DeleteDeployment", pb.DeleteDeploymentResponse())
    assert json.loads(run("rm", "tiny", "--json").out) == {"name": "tiny", "deleted": True}


def test_generate_writes_the_text_and_nothing_else(run: Run, control: FakeControl) -> None:
    control.reply("Generate", *generation())

    outcome = run("generate", "tiny", "Once", "--max-tokens", "3", "--temperature", "0")

    assert (outcome.code, outcome.out, outcome.err) == (0, "Once upon\n", "")
    (request,) = control.requests["Generate"]
    assert (request.text, request.max_tokens, request.sampling.temperature) == ("Once", 3, 0.0)


@pytest.mark.parametrize("arguments", [["-"], []])
def test_generate_takes_the_prompt_from_its_input(
    run: Run, control: FakeControl, arguments: list[str]
) -> None:
    control.reply("Generate", *generation())

    outcome = run("generate", "tiny", *arguments, stdin="Once\nupon\n")

    assert (outcome.code, outcome.out) == (0, "Once upon\n")
    assert control.requests["Generate"][0].text == "Once\nupon"


def test_generate_shows_the_receipt_beside_the_text(run: Run, control: FakeControl) -> None:
    control.reply("Generate", *generation())

    outcome = run("generate", "tiny", "Once", "--receipt")

    assert outcome.out == "Once upon\n"
    for row in ("read ssd", "500.0", "1250.0 ms to the first token", "cold, SSD", "n-1"):
        assert row in outcome.err


def test_a_terminal_sees_a_cold_start_beside_the_text(
    run: Run, control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # what rich takes for a terminal
    control.reply("Generate", *generation())

    outcome = run("generate", "tiny", "Once")

    assert outcome.out == "Once upon\n"
    assert "reading into memory" in outcome.err


def test_generate_as_json(run: Run, control: FakeControl) -> None:
    control.reply("Generate", *generation())

    result = json.loads(run("generate", "tiny", "Once", "--json").out)

    assert (result["text"], result["token_ids"]) == ("Once upon", [10, 11, 12])
    assert result["receipt"]["time_to_first_token"] == 1.25


def test_generate_shows_samples_as_they_end(run: Run, control: FakeControl) -> None:
    control.reply("Generate", *samples())

    outcome = run("generate", "tiny", "Once", "--n", "2")

    assert (outcome.code, outcome.out) == (0, "[1]\nTwice\n[0]\nOnce upon\n")
    assert control.requests["Generate"][0].n == 2


def test_generate_samples_as_json(run: Run, control: FakeControl) -> None:
    control.reply("Generate", *samples())

    result = json.loads(run("generate", "tiny", "Once", "--n", "2", "--json").out)

    assert [one["text"] for one in result["choices"]] == ["Once upon", "Twice"]
    assert result["text"] == "Once upon"


def test_chat_carries_the_conversation_on(run: Run, control: FakeControl) -> None:
    for _ in range(2):
        control.reply("Generate", *generation())

    outcome = run("chat", "tiny", "--system", "Be kind", stdin="Hi\nAnd then?\n")

    assert (outcome.code, outcome.out) == (0, "Once upon\nOnce upon\n")
    said = [(one.role, one.content) for one in control.requests["Generate"][1].messages.messages]
    assert said == [
        ("system", "Be kind"),
        ("user", "Hi"),
        ("assistant", "Once upon"),
        ("user", "And then?"),
    ]


def test_an_error_is_one_line(run: Run, control: FakeControl) -> None:
    control.reply("DeleteDeployment", errors.DeploymentNotFound("no deployment is\nnamed 'x'"))

    outcome = run("rm", "x")

    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith("error: DEPLOYMENT_NOT_FOUND: no deployment is named 'x' (next: ")
    assert outcome.err.count("\n") == 1


def test_an_error_of_a_command_that_prints_json_is_json(run: Run, control: FakeControl) -> None:
    error = errors.QueueFull("wait\na moment", metadata={"waiting": "3"}, retry_after=1.5)
    control.reply("Generate", error)

    outcome = run("generate", "tiny", "Once", "--json")

    assert (outcome.code, outcome.out) == (1, "")
    assert json.loads(outcome.err) == {
        "error": {
            "reason": "QUEUE_FULL",
            "message": "wait a moment",
            "metadata": {"waiting": "3"},
            "retry_after": 1.5,
            "hint": "`sllm top` shows what waits",
        }
    }


@pytest.mark.parametrize(
    "arguments",
    [
        ["rm", "--json"],
        ["ls", "--json", "--spam"],
        ["migrate", "--json"],
        ["generate", "x", "--json"],
    ],
)
def test_so_is_a_wrong_use(run: Run, arguments: list[str]) -> None:
    outcome = run(*arguments)

    assert (outcome.code, outcome.out) == (2, "")
    assert json.loads(outcome.err)["error"]["reason"] == "USAGE"


def test_what_only_reads_like_an_option_is_none(run: Run, control: FakeControl) -> None:
    control.reply("Generate", errors.WorkerDied("the worker died"))

    outcome = run("generate", "tiny", "--", "--json")

    assert outcome.err.startswith("error: WORKER_DIED: the worker died (next: ")


def test_bytes_that_are_no_text_are_refused(run: Run) -> None:
    outcome = run("rm", os.fsdecode(b"\xff"))

    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith("error: INVALID_ARGUMENT: ")


@pytest.mark.parametrize("command", sorted(_commands(app)))
def test_help_is_asked_for_in_short_as_well(run: Run, command: str) -> None:
    outcome = run(command, "-h")

    assert outcome.code == 0
    assert "Usage" in outcome.out


def test_an_error_within_a_stream_is_one_line(run: Run, control: FakeControl) -> None:
    control.reply("Generate", QUEUED, errors.WorkerDied("the worker died"))

    outcome = run("generate", "tiny", "Once")

    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert outcome.err.startswith("error: WORKER_DIED: the worker died (next: ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["spam"],
        ["generate", "tiny"],
        ["ls", "--spam"],
        ["node", "--dram", "much"],
        ["node", "--kv", "-1"],
        ["up", "--nodes", "0"],
        ["up", "--port", "70000"],
        ["up", "--port", "-1"],
        ["node", "--metrics-port", "65536"],
        ["control", "--metrics-port", "65536"],
    ],
)
def test_a_wrong_use_ends_with_2(run: Run, arguments: list[str]) -> None:
    outcome = run(*arguments)

    assert outcome.code == 2
    assert "Usage" in outcome.err
