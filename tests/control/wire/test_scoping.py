"""Names in messages of tenants."""

import pytest
from google.protobuf.descriptor import Descriptor
from serverlessllm.v1 import (
    batch_service_pb2,
    cluster_service_pb2,
    deployment_service_pb2,
    embedding_service_pb2,
    inference_service_pb2,
    model_service_pb2,
    types_pb2,
)

from sllm.control.wire.scoping import Scope, is_name

ACME = Scope("acme")
SERVICES = (
    batch_service_pb2.DESCRIPTOR,
    cluster_service_pb2.DESCRIPTOR,
    deployment_service_pb2.DESCRIPTOR,
    embedding_service_pb2.DESCRIPTOR,
    inference_service_pb2.DESCRIPTOR,
    model_service_pb2.DESCRIPTOR,
)


def test_names_come_in_whole_and_go_out_as_they_were_said() -> None:
    request = inference_service_pb2.GenerateRequest(
        deployment="llama", request_id="r", text="acme/"
    )
    ACME.come_in(request)
    assert (request.deployment, request.request_id) == ("acme:llama", "acme:r")
    assert request.text == "acme/"
    started = inference_service_pb2.GenerateResponse()
    started.started.request_id = "acme:r"
    ACME.go_out(started)
    assert started.started.request_id == "r"


def test_names_within_lists_of_messages_are_names_too() -> None:
    state = cluster_service_pb2.ClusterState(
        instances=[
            cluster_service_pb2.InstanceLoad(
                instance=types_pb2.Instance(
                    deployment="acme:llama", unread_request_ids=["acme:r", "other:r"]
                )
            )
        ],
        deployments=[cluster_service_pb2.DeploymentLoad(deployment="other:llama")],
    )
    ACME.go_out(state)
    instance = state.instances[0].instance
    assert (instance.deployment, [*instance.unread_request_ids]) == ("llama", ["r", "other:r"])
    assert state.deployments[0].deployment == "other:llama"


def test_what_was_not_set_stays_so() -> None:
    """Presence means something: which of a oneof it is, or that an id was left to the server."""
    request = cluster_service_pb2.MigrateRequest(instance_id="i")
    ACME.come_in(request)
    assert request == cluster_service_pb2.MigrateRequest(instance_id="i")
    assert request.WhichOneof("what") == "instance_id"


def test_without_a_tenant_nothing_is_changed() -> None:
    request = deployment_service_pb2.DeployRequest(name="llama", base="b", request_id="r")
    Scope("default").come_in(request)
    assert request == deployment_service_pb2.DeployRequest(name="llama", base="b", request_id="r")


OTHER_NAMES = {
    "ChatMessage.name",
    "Device.name",
    "NodeEngine.name",
    "WeightForm.name",
    "Tool.name",
    "ToolCall.name",
    "ToolCallDelta.name",
}
"""Of what belongs to no tenant."""


def _messages(message: Descriptor, seen: dict[str, Descriptor]) -> None:
    if message.full_name.startswith("serverlessllm.v1.") and message.name not in seen:
        seen[message.name] = message
        for field in message.fields:
            if field.message_type:
                _messages(field.message_type, seen)


@pytest.fixture(scope="module")
def messages() -> dict[str, Descriptor]:
    """All that callers send and get."""
    seen: dict[str, Descriptor] = {}
    for file in SERVICES:
        for service in file.services_by_name.values():
            for method in service.methods:
                _messages(method.input_type, seen)
                _messages(method.output_type, seen)
    return seen


def test_every_name_is_known_as_one_or_as_none(messages: dict[str, Descriptor]) -> None:
    """A field that is new has to be decided on here."""
    for message in messages.values():
        for field in message.fields:
            place = f"{message.name}.{field.name}"
            looks_like_one = field.name == "name" or field.name.endswith(
                ("deployment", "deployments", "request_id", "request_ids", "batch_id", "base")
            )
            if looks_like_one and field.message_type is None:
                assert is_name(field) != (place in OTHER_NAMES), place
