"""The public surface: what programs may rely on."""

import dataclasses
import importlib
import subprocess
import sys

import pytest

import sllm

PUBLIC = {
    "AsyncClient",
    "AsyncStream",
    "ChatMessage",
    "CheckpointCopy",
    "Client",
    "Deployment",
    "DeploymentState",
    "Event",
    "FinishReason",
    "Finished",
    "Instance",
    "InstanceState",
    "Link",
    "LoadPhase",
    "Loading",
    "Migrated",
    "MigrationReason",
    "Model",
    "Node",
    "Phase",
    "PhaseKind",
    "Progress",
    "Queued",
    "Receipt",
    "Result",
    "Started",
    "Stream",
    "Tier",
    "TierUsage",
    "TokenLogprob",
    "Tokens",
    "TopLogprob",
    "Usage",
    "errors",
}
METHODS = {
    "address",
    "cancel",
    "close",
    "complete",
    "delete",
    "deploy",
    "deployment",
    "deployments",
    "generate",
    "instances",
    "nodes",
}


def test_the_names_are_these() -> None:
    assert set(sllm.__all__) == PUBLIC
    assert set(dir(sllm)) == PUBLIC
    for name in PUBLIC:
        assert getattr(sllm, name) is not None


def test_other_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Spam'"):
        sllm.Spam  # noqa: B018 - on purpose


@pytest.mark.parametrize("name", ["Client", "AsyncClient"])
def test_the_clients_can_do_this(name: str) -> None:
    cls = getattr(sllm, name)
    instance_attributes = set(vars(cls("localhost:1"))) if name == "AsyncClient" else set()
    public = {one for one in {*vars(cls), *instance_attributes} if not one.startswith("_")}
    assert public == METHODS


@pytest.mark.parametrize("module", ["events", "records"])
def test_records_are_frozen(module: str) -> None:
    found = vars(importlib.import_module(f"sllm.client.{module}")).values()
    classes = [one for one in found if dataclasses.is_dataclass(one)]
    assert classes
    for cls in classes:
        assert vars(cls)["__dataclass_params__"].frozen, cls


def test_the_package_alone_brings_no_grpc() -> None:
    script = "import sys, sllm; from sllm import errors; sys.exit('grpc' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
