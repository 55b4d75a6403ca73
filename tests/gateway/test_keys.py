"""What callers show is passed on, and judged by the control plane alone."""

from typing import Any

import httpx2
import pytest
from serverlessllm.v1 import deployment_service_pb2 as pb
from serverlessllm.v1 import key_service_pb2 as key_pb

from sllm import config, errors
from tests.client.fake_control import FakeControl
from tests.gateway.conftest import Open

SHOWN: dict[str, tuple[dict[str, str], str | None]] = {
    "OpenAI's way": ({"authorization": "Bearer sllm_a"}, "Bearer sllm_a"),
    "in small letters": ({"authorization": "bearer sllm_a"}, "Bearer sllm_a"),
    "Anthropic's way": ({"x-api-key": "sllm_b"}, "Bearer sllm_b"),
    "both ways": ({"authorization": "Bearer sllm_a", "x-api-key": "sllm_b"}, "Bearer sllm_a"),
    "another scheme": ({"authorization": "Basic sllm_a"}, None),
    "nothing": ({}, None),
}


@pytest.mark.parametrize("what", SHOWN)
async def test_it_goes_along_and_nothing_else_does(
    opened: Open, control: FakeControl, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setenv(config.API_KEY_VARIABLE, "sllm_the_gateways")
    url = await opened()
    headers, expected = SHOWN[what]
    control.reply("ListDeployments", pb.ListDeploymentsResponse())
    async with httpx2.AsyncClient(base_url=url) as http:
        assert (await http.get("/v1/models", headers=headers)).status_code == 200
    assert control.metadata["ListDeployments"][0].get("authorization") == expected


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (errors.Unauthenticated("show a key"), 401, "authentication_error"),
        (errors.PermissionDenied("not you"), 403, "permission_error"),
    ],
)
async def test_a_refusal_has_the_status_that_clients_know(
    http: httpx2.AsyncClient, control: FakeControl, error: errors.SllmError, status: int, kind: str
) -> None:
    control.reply("ListDeployments", error)
    answer = await http.get("/v1/models")
    told: dict[str, Any] = answer.json()["error"]
    assert (answer.status_code, told["type"], told["code"]) == (status, kind, error.reason)


async def test_it_goes_along_over_connect(http: httpx2.AsyncClient, control: FakeControl) -> None:
    control.reply("ListDeployments", pb.ListDeploymentsResponse())
    path = "/serverlessllm.v1.DeploymentService/ListDeployments"
    headers = {"authorization": "Bearer sllm_a", "content-type": "application/json"}
    assert (await http.post(path, headers=headers, content=b"{}")).status_code == 200
    assert control.metadata["ListDeployments"][0]["authorization"] == "Bearer sllm_a"


async def test_no_cache_keeps_what_is_answered_over_connect(
    http: httpx2.AsyncClient, control: FakeControl
) -> None:
    control.reply("CreateKey", key_pb.CreateKeyResponse(secret="sllm_new"))
    control.reply("CreateKey", errors.PermissionDenied("not you"))
    path = "/serverlessllm.v1.KeyService/CreateKey"
    for status in (200, 403):
        answer = await http.post(path, json={})
        assert answer.status_code == status
        assert answer.headers["cache-control"] == "no-store"
