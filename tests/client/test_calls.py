"""What the methods ask of the control plane, and what they make of its answers."""

import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from serverlessllm.v1 import cluster_service_pb2 as cluster_pb
from serverlessllm.v1 import deployment_service_pb2 as pb
from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1 import types_pb2 as types

import sllm
from sllm import errors
from tests.client.conftest import Call
from tests.client.fake_control import FakeControl, Silence, Step
from tests.client.messages import deployment, generation

PREPARING = deployment(
    state=pb.DEPLOYMENT_STATE_PREPARING,
    loading=types.Loading(phase=types.LOAD_PHASE_IMPORT, loaded_bytes=1, total_bytes=2),
)
FAILED = deployment(state=pb.DEPLOYMENT_STATE_FAILED, message="the disk is full: free some")


def watched(*deployments: pb.Deployment) -> list[Step]:
    return [pb.WatchDeploymentResponse(deployment=one) for one in deployments]


# --- deploy -----------------------------------------------------------------------------------


def test_deploy_says_what_it_was_told(control: FakeControl, call: Call) -> None:
    control.reply("Deploy", pb.DeployResponse(deployment=deployment()))

    call(
        "deploy",
        "tiny",
        "file:///models/tiny",
        keep_alive=1.5,
        min_replicas=0,
        max_replicas=2,
        dtype="float32",
        max_concurrency=4,
        target_concurrency=3,
        learn_keep_alive=True,
        target_time_per_token=0.05,
    )

    (request,) = control.requests["Deploy"]
    assert request.request_id
    assert (request.name, request.source) == ("tiny", "file:///models/tiny")
    assert request.engine == types.EngineConfig(dtype="float32", max_concurrency=4)
    assert request.scaling == types.ScalingPolicy(
        min_replicas=0,
        max_replicas=2,
        keep_alive=Duration(seconds=1, nanos=500_000_000),
        target_concurrency=3,
        learn_keep_alive=True,
        target_time_per_token=Duration(nanos=50_000_000),
    )


def test_deploy_returns_the_deployment(control: FakeControl, call: Call) -> None:
    control.reply("Deploy", pb.DeployResponse(deployment=deployment()))

    assert call("deploy", "tiny", "file:///models/tiny") == sllm.Deployment(
        name="tiny",
        source="file:///models/tiny",
        state=sllm.DeploymentState.AVAILABLE,
        message="",
        engine="vllm",
        dtype="float32",
        kv_cache_tokens=None,
        max_concurrency=4,
        target_concurrency=3,
        tool_parser="",
        reasoning_parser="",
        tensor_parallel=1,
        pack=False,
        min_replicas=0,
        max_replicas=2,
        keep_alive=1.5,
        model=sllm.Model("LlamaForCausalLM", 4096, 512, 64, "abc"),
        created_at=1_700_000_000.5,
        ready_instances=0,
        queued_requests=0,
        loading=None,
        learn_keep_alive=True,
        learned=sllm.LearnedKeepTimes(0.5, 9.0),
        target_time_per_token=0.05,
        tuned=sllm.TunedConcurrency(2, 0.04),
    )


def test_a_path_is_made_absolute(control: FakeControl, call: Call) -> None:
    control.reply("Deploy", pb.DeployResponse(deployment=deployment()))

    call("deploy", "tiny", Path("models/tiny"))

    assert control.requests["Deploy"][0].source == str(Path.cwd() / "models/tiny")


def test_deploy_waits_until_a_node_holds_the_checkpoint(control: FakeControl, call: Call) -> None:
    control.reply("Deploy", pb.DeployResponse(deployment=PREPARING))
    control.reply("WatchDeployment", *watched(PREPARING, PREPARING, deployment()), Silence())
    seen: list[sllm.Progress] = []

    found = call("deploy", "tiny", "/models/tiny", on_progress=seen.append)

    assert found.state == "AVAILABLE"
    assert seen == [sllm.Progress(sllm.LoadPhase.IMPORT, None, 1, 2, None)] * 2
    assert control.requests["WatchDeployment"] == [pb.WatchDeploymentRequest(name="tiny")]


def test_deploy_need_not_wait(control: FakeControl, call: Call) -> None:
    control.reply("Deploy", pb.DeployResponse(deployment=PREPARING))

    assert call("deploy", "tiny", "/models/tiny", wait=False).state == "PREPARING"
    assert not control.requests["WatchDeployment"]


def test_deploy_fails_with_the_checkpoint(control: FakeControl, call: Call) -> None:
    control.reply("Deploy", pb.DeployResponse(deployment=PREPARING))
    control.reply("WatchDeployment", *watched(PREPARING, FAILED))

    with pytest.raises(errors.DeploymentFailed, match="tiny: the disk is full: free some"):
        call("deploy", "tiny", "/models/tiny")


def test_deploy_notices_a_deletion(control: FakeControl, call: Call) -> None:
    control.reply("Deploy", pb.DeployResponse(deployment=PREPARING))
    control.reply("WatchDeployment", *watched(PREPARING))

    with pytest.raises(errors.DeploymentNotFound, match="tiny was deleted"):
        call("deploy", "tiny", "/models/tiny")


def test_deploy_waits_no_longer_than_its_timeout(control: FakeControl, call: Call) -> None:
    control.reply("Deploy", pb.DeployResponse(deployment=PREPARING))
    control.reply("WatchDeployment", *watched(PREPARING), Silence())

    with pytest.raises(errors.DeadlineExceeded):
        call("deploy", "tiny", "/models/tiny", timeout=0.5)


# --- listings ---------------------------------------------------------------------------------


def test_deployments_are_listed_over_all_pages(control: FakeControl, call: Call) -> None:
    for names, token in ((["a", "b"], "b"), (["c"], "")):
        page = [deployment(name) for name in names]
        control.reply(
            "ListDeployments",
            pb.ListDeploymentsResponse(deployments=page, next_page_token=token),
        )

    assert [one.name for one in call("deployments")] == ["a", "b", "c"]
    tokens = [request.page_token for request in control.requests["ListDeployments"]]
    assert tokens == ["", "b"]


def test_instances_are_listed_over_all_pages(control: FakeControl, call: Call) -> None:
    instance = types.Instance(
        instance_id="i-1",
        deployment="tiny",
        node_id="n-1",
        state=types.INSTANCE_STATE_READY,
        running_requests=2,
        kv_bytes=64,
        digest="abc",
        started_at=Timestamp(seconds=5),
        worker_pid=7,
    )
    for token in ("more", ""):
        page = cluster_pb.ListInstancesResponse(instances=[instance], next_page_token=token)
        control.reply("ListInstances", page)

    ready = sllm.InstanceState.READY
    expected = sllm.Instance("i-1", "tiny", "n-1", ready, 2, 64, "abc", 5.0, 7)
    assert call("instances", "tiny") == [expected, expected]
    assert {request.deployment for request in control.requests["ListInstances"]} == {"tiny"}


def test_nodes_are_listed_over_all_pages(control: FakeControl, call: Call) -> None:
    node = types.Node(
        node_id="n-1",
        address="host:1",
        host="host",
        tiers=[types.TierUsage(tier=types.TIER_DRAM, capacity_bytes=100, used_bytes=30)],
        kv_capacity_bytes=10,
        kv_used_bytes=4,
        copies=[
            types.CheckpointCopy(
                digest="abc",
                tier=types.TIER_SSD,
                size_bytes=9,
                resident_bytes=8,
                sources=["file:///m"],
                leased=True,
            )
        ],
        links=[
            types.LinkObservation(
                from_tier=types.TIER_SSD,
                to_tier=types.TIER_DRAM,
                bytes_per_second=1.5,
                queued_bytes=2,
                in_flight_bytes=1,
            )
        ],
        connected_at=Timestamp(seconds=5),
    )
    for token in ("more", ""):
        page = cluster_pb.ListNodesResponse(nodes=[node], next_page_token=token)
        control.reply("ListNodes", page)

    expected = sllm.Node(
        node_id="n-1",
        address="host:1",
        host="host",
        tiers=(sllm.TierUsage(sllm.Tier.DRAM, 100, 30),),
        kv_capacity_bytes=10,
        kv_used_bytes=4,
        copies=(sllm.CheckpointCopy("abc", sllm.Tier.SSD, 9, 8, ("file:///m",), leased=True),),
        links=(sllm.Link(sllm.Tier.SSD, sllm.Tier.DRAM, 1.5, 2, 1),),
        init_time=None,
        connected_at=5.0,
    )
    assert call("nodes") == [expected, expected]
    assert expected.tiers[0].free_bytes == 70


def test_a_value_of_a_newer_server_is_unknown(control: FakeControl, call: Call) -> None:
    instance = types.Instance(instance_id="i-1", state=99)  # type: ignore[arg-type]  # on purpose
    control.reply("ListInstances", cluster_pb.ListInstancesResponse(instances=[instance]))

    (found,) = call("instances")
    assert found.state is sllm.InstanceState.UNKNOWN


def test_one_deployment(control: FakeControl, call: Call) -> None:
    control.reply("GetDeployment", pb.GetDeploymentResponse(deployment=deployment("one")))

    assert call("deployment", "one").name == "one"


# --- changes, retries, failures -------------------------------------------------------------


def test_delete_and_cancel_name_what_they_end(control: FakeControl, call: Call) -> None:
    control.reply("DeleteDeployment", pb.DeleteDeploymentResponse())
    control.reply("Cancel", inference_pb.CancelResponse())

    call("delete", "tiny")
    call("cancel", "mine")

    assert control.requests["DeleteDeployment"][0].name == "tiny"
    assert control.requests["DeleteDeployment"][0].request_id
    assert control.requests["Cancel"][0].request_id == "mine"


def test_a_change_is_tried_again_under_the_same_request_id(
    control: FakeControl, call: Call
) -> None:
    control.reply("Deploy", errors.ShuttingDown("not now"))
    control.reply("Deploy", pb.DeployResponse(deployment=deployment()))

    call("deploy", "tiny", "/models/tiny")

    first, second = control.requests["Deploy"]
    assert first == second


def test_a_change_is_not_tried_for_ever(control: FakeControl, call: Call) -> None:
    for _ in range(10):
        control.reply("DeleteDeployment", errors.ShuttingDown("not now"))

    with pytest.raises(errors.ShuttingDown):
        call("delete", "tiny")
    assert len(control.requests["DeleteDeployment"]) < 10


def test_a_refusal_is_not_tried_again(control: FakeControl, call: Call) -> None:
    control.reply("DeleteDeployment", errors.DeploymentNotFound("no tiny"))

    with pytest.raises(errors.DeploymentNotFound):
        call("delete", "tiny")
    assert len(control.requests["DeleteDeployment"]) == 1


@pytest.mark.parametrize("method", ["deployments", "instances", "nodes"])
def test_an_unreachable_control_plane_is_named(method: str) -> None:
    with (
        sllm.Client("localhost:1") as client,
        pytest.raises(errors.Unreachable, match=r"localhost:1.*sllm up"),
    ):
        getattr(client, method)()


def test_an_unreachable_control_plane_fails_streams_too() -> None:
    with (
        sllm.Client("localhost:1") as client,
        pytest.raises(errors.Unreachable, match="localhost:1"),
    ):
        client.complete("tiny", "Once")


TEXTS: dict[str, Callable[[Call, str], object]] = {
    "deploy": lambda call, text: call("deploy", text, "/models/tiny"),
    "source": lambda call, text: call("deploy", "tiny", text),
    "deployment": lambda call, text: call("deployment", text),
    "delete": lambda call, text: call("delete", text),
    "instances": lambda call, text: call("instances", text),
    "generate": lambda call, text: call("complete", text, "Once"),
    "prompt": lambda call, text: call("complete", "tiny", text),
    "stop": lambda call, text: call("complete", "tiny", "Once", stop=text),
    "cancel": lambda call, text: call("cancel", text),
    "explain": lambda call, text: call("explain", text),
    "prefetch": lambda call, text: call("prefetch", text),
    "prefetched source": lambda call, text: call("prefetch", source=text),
    "pin": lambda call, text: call("pin", text, node="n-1"),
    "unpin": lambda call, text: call("unpin", text),
    "pins": lambda call, text: call("pins", text),
    "drain": lambda call, text: call("drain", text),
    "undrain": lambda call, text: call("undrain", text),
    "migrate": lambda call, text: call("migrate", request_id=text),
    "to": lambda call, text: call("migrate", request_id="r-1", to_node=text),
}
"""A call for each text that a caller gives."""


@pytest.mark.parametrize("what", TEXTS)
def test_a_text_that_is_not_utf_8_is_refused(control: FakeControl, call: Call, what: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="cannot be written as UTF-8"):
        TEXTS[what](call, os.fsdecode(b"tiny \xff"))
    assert not control.requests


@pytest.mark.parametrize("timeout", [1e10, 1e30, math.inf])
def test_any_timeout_is_one(control: FakeControl, call: Call, timeout: float) -> None:
    """gRPC lets those pass at once that its clock does not reach."""
    control.reply("Generate", *generation())
    control.reply("Deploy", pb.DeployResponse(deployment=deployment()))

    assert call("complete", "tiny", "Once", timeout=timeout).text == "Once upon"
    assert call("deploy", "tiny", "/models/tiny", timeout=timeout).name == "tiny"


def test_but_one_that_is_no_number(control: FakeControl, call: Call) -> None:
    for method, arguments in (("complete", ("tiny", "Once")), ("deploy", ("tiny", "/models/tiny"))):
        with pytest.raises(errors.InvalidArgument, match="a number of seconds"):
            call(method, *arguments, timeout=math.nan)
    assert not control.requests


@pytest.mark.parametrize("address", ["localhost", "localhost:70000", "localhost:0", "http://h:1"])
@pytest.mark.parametrize("client", [sllm.Client, sllm.AsyncClient])
def test_what_is_no_address_is_refused(
    client: type[sllm.Client] | type[sllm.AsyncClient], address: str
) -> None:
    with pytest.raises(errors.InvalidArgument, match="must be host:port"):
        client(address)


def test_a_control_plane_that_does_not_answer_is_given_up(control: FakeControl) -> None:
    control.reply("ListNodes", Silence())

    with (
        sllm.Client(control.address, call_timeout=0.3) as client,
        pytest.raises(errors.DeadlineExceeded, match=control.address),
    ):
        client.nodes()


def test_the_address_comes_from_the_environment(
    control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLLM_CONTROL", control.address)
    control.reply("ListNodes", cluster_pb.ListNodesResponse())

    with sllm.Client() as client:
        assert client.nodes() == []
