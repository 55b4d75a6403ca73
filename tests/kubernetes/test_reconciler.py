"""What the operator does with resources, whatever the control plane answers."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from serverlessllm.v1 import deployment_service_pb2 as pb
from serverlessllm.v1 import types_pb2 as types

import sllm
from sllm import errors
from sllm.clock import ManualClock
from sllm.kubernetes.reconciler import Reconciler
from sllm.kubernetes.resources import Resource
from tests.client.fake_control import FakeControl, Silence
from tests.support import assert_eventually

TRIES = 4
"""Of the client itself, where a server cannot be reached."""
NOW = "2026-01-02T03:04:05Z"
MADE = Resource("models", "tiny", 1, {"source": "/models/tiny", "kvCacheTokens": 64}, {})


def deployment(
    state: pb.DeploymentState.ValueType = pb.DEPLOYMENT_STATE_AVAILABLE, ready: int = 0
) -> pb.Deployment:
    return pb.Deployment(
        name="tiny", source="file:///models/tiny", state=state, ready_instances=ready
    )


def watched(*seen: pb.Deployment) -> list[Any]:
    return [pb.WatchDeploymentResponse(deployment=one) for one in seen]


def condition(status: dict[str, Any], kind: str) -> dict[str, Any]:
    (found,) = [one for one in status["conditions"] if one["type"] == kind]
    return dict(found)


@pytest.fixture
def control() -> Any:
    server = FakeControl()
    yield server
    server.stop()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def reconciler(control: FakeControl, clock: ManualClock) -> AsyncIterator[Reconciler]:
    async with sllm.AsyncClient(control.address) as client:
        made = Reconciler(client, clock, lambda: datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
        yield made
        await made.close()


async def test_it_is_deployed_once_for_each_generation_and_followed(
    control: FakeControl, reconciler: Reconciler
) -> None:
    preparing = deployment(pb.DEPLOYMENT_STATE_PREPARING)
    for _ in range(2):
        control.reply("Deploy", pb.DeployResponse(deployment=preparing))
    control.reply("WatchDeployment", *watched(preparing, deployment(ready=2)), Silence())
    status = await reconciler.bring(MADE)
    assert condition(status, "Accepted")["status"] == "True"
    assert condition(status, "Available")["status"] == "False"

    async def seen() -> bool:
        return bool((await reconciler.bring(MADE))["readyInstances"] == 2)

    await assert_eventually(seen)
    assert [one.engine.kv_cache_tokens for one in control.requests["Deploy"]] == [64]
    told = await reconciler.bring(MADE)
    assert condition(told, "Available") == {
        "type": "Available",
        "status": "True",
        "reason": "Available",
        "message": "A node holds its checkpoint.",
        "observedGeneration": 1,
        "lastTransitionTime": NOW,
    }
    await reconciler.bring(replace(MADE, generation=2))
    assert len(control.requests["Deploy"]) == 2


@pytest.mark.parametrize(
    ("error", "state", "seconds"),
    [
        (errors.SourceNotFound("no such source"), "REFUSED", 5.0),
        (errors.UnsupportedModel("not this one"), "REFUSED", 60.0),
        (errors.NoNodes("nobody there"), "PENDING", 5.0),
    ],
)
async def test_what_is_refused_is_tried_again_after_a_while(
    control: FakeControl,
    reconciler: Reconciler,
    clock: ManualClock,
    error: errors.SllmError,
    state: str,
    seconds: float,
) -> None:
    tries = TRIES if isinstance(error, errors.Unavailable) else 1
    for _ in range(tries):
        control.reply("Deploy", error)
    status = await reconciler.bring(MADE)
    assert (status["state"], status["message"]) == (state, str(error))
    assert condition(status, "Accepted")["reason"] == type(error).__name__
    clock.advance(seconds - 0.1)
    await reconciler.bring(MADE)
    assert len(control.requests["Deploy"]) == tries
    control.reply("Deploy", pb.DeployResponse(deployment=deployment()))
    control.reply("WatchDeployment", Silence())
    clock.advance(0.1)
    assert (await reconciler.bring(MADE))["state"] == "AVAILABLE"


async def test_a_new_spec_does_not_wait(control: FakeControl, reconciler: Reconciler) -> None:
    control.reply("Deploy", errors.UnsupportedModel("not this one"))
    await reconciler.bring(MADE)
    control.reply("Deploy", pb.DeployResponse(deployment=deployment()))
    control.reply("WatchDeployment", Silence())
    assert (await reconciler.bring(replace(MADE, generation=2)))["state"] == "AVAILABLE"


async def test_one_that_is_there_is_not_told_as_gone_while_nobody_can_be_asked(
    control: FakeControl, reconciler: Reconciler
) -> None:
    """As after a restart of both."""
    there = {"deployed": True, "state": "AVAILABLE", "conditions": [{"type": "Accepted"}]}
    for _ in range(TRIES):
        control.reply("Deploy", errors.ShuttingDown("not now"))
    status = await reconciler.bring(replace(MADE, status=there))
    assert status == {**there, "message": "not now"}


async def test_one_that_was_taken_away_is_made_again(
    control: FakeControl, reconciler: Reconciler
) -> None:
    for _ in range(2):
        control.reply("Deploy", pb.DeployResponse(deployment=deployment()))
    control.reply("WatchDeployment", *watched(deployment()))
    control.reply("WatchDeployment", Silence())

    async def again() -> bool:
        await reconciler.bring(MADE)
        return len(control.requests["Deploy"]) == 2

    await assert_eventually(again)


async def test_only_what_was_accepted_is_deleted(
    control: FakeControl, reconciler: Reconciler
) -> None:
    control.reply("Deploy", errors.DeploymentExists("another source"))
    await reconciler.bring(MADE)
    await reconciler.remove(MADE)
    assert not control.requests["DeleteDeployment"]
    control.reply("DeleteDeployment", errors.AdaptersLeft("one is left"))
    control.reply("DeleteDeployment", errors.DeploymentNotFound("gone"))
    there = replace(MADE, status={"deployed": True})
    with pytest.raises(errors.AdaptersLeft):
        await reconciler.remove(there)
    await reconciler.remove(there)


FILE = "file:///models/a%23b"


@pytest.mark.parametrize(
    ("spec", "there", "ours"),
    [
        ({"source": FILE}, pb.Deployment(source=FILE), True),
        ({"source": "/models/a#b"}, pb.Deployment(source=FILE), True),
        ({"source": "/models/a"}, pb.Deployment(source=FILE), False),
        ({"source": "hf://a/b"}, pb.Deployment(source="hf://a/b"), True),
        ({"source": ""}, pb.Deployment(source="hf://a/b"), False),
        (
            {"source": FILE, "dtype": "float16"},
            pb.Deployment(source=FILE, engine=types.EngineConfig(dtype="float16")),
            True,
        ),
        ({"source": FILE, "dtype": "float16"}, pb.Deployment(source=FILE), False),
        ({"source": FILE, "base": "m"}, pb.Deployment(source=FILE, base="m"), True),
        ({"source": FILE}, pb.Deployment(source=FILE, base="m"), False),
    ],
)
async def test_what_was_taken_and_never_told_of_is_deleted_if_it_is_of_the_same(
    control: FakeControl,
    reconciler: Reconciler,
    spec: dict[str, Any],
    there: pb.Deployment,
    ours: bool,
) -> None:
    """The operator has ended in between, and the resource was deleted before it came back."""
    control.reply("GetDeployment", pb.GetDeploymentResponse(deployment=there))
    control.reply("DeleteDeployment", pb.DeleteDeploymentResponse())
    await reconciler.remove(replace(MADE, spec=spec))
    assert len(control.requests["DeleteDeployment"]) == ours
    assert not control.requests["Deploy"], "whose it is was asked, and nothing changed"


async def test_what_was_never_taken_ends_nothing(
    control: FakeControl, reconciler: Reconciler
) -> None:
    control.reply("GetDeployment", errors.DeploymentNotFound("never taken"))
    await reconciler.remove(MADE)
    assert not control.requests["DeleteDeployment"]


@pytest.mark.parametrize(
    "error",
    [errors.ShuttingDown("not now"), errors.Unauthenticated("who?"), errors.TenantLimit("later")],
)
async def test_while_nobody_can_say_whose_it_is_it_waits(
    control: FakeControl, reconciler: Reconciler, error: errors.SllmError
) -> None:
    for _ in range(TRIES):
        control.reply("GetDeployment", error)
    with pytest.raises(type(error)):
        await reconciler.remove(MADE)


async def test_a_spec_that_no_schema_has_looked_at_is_refused(reconciler: Reconciler) -> None:
    status = await reconciler.bring(replace(MADE, spec={"engine": "vllm"}))
    assert condition(status, "Accepted")["reason"] == "InvalidArgument"
