"""The public surface: what programs may rely on."""

import dataclasses
import importlib
import inspect
import subprocess
import sys

import pytest

import sllm
from sllm import checkpoint

PUBLIC = {
    "Adapter",
    "AsyncClient",
    "AsyncStream",
    "Batch",
    "BatchRequest",
    "BatchResult",
    "BatchState",
    "CacheMove",
    "CallerRole",
    "CreatedKey",
    "Key",
    "ChatMessage",
    "CheckpointCopy",
    "Choice",
    "ChoiceFinished",
    "Client",
    "Cluster",
    "Deployment",
    "DeploymentLoad",
    "EndedRequest",
    "DeploymentState",
    "Device",
    "DrainProgress",
    "Embedding",
    "Embeddings",
    "Event",
    "FinishReason",
    "Finished",
    "Instance",
    "InstanceLoad",
    "InstanceState",
    "KvShare",
    "LearnedKeepTimes",
    "Link",
    "LoadPhase",
    "Loading",
    "Migrated",
    "Migration",
    "MigrationOutcome",
    "MigrationReason",
    "Model",
    "ModelDetails",
    "MoveWay",
    "NamedTool",
    "Node",
    "NodeMemory",
    "Phase",
    "PhaseKind",
    "Pin",
    "Placement",
    "PlacementAction",
    "PlacementCandidate",
    "Prefetched",
    "Progress",
    "PromptLogprob",
    "PromptLogprobs",
    "Purpose",
    "Queued",
    "Receipt",
    "RequestMigration",
    "RequestReceipt",
    "RequestLimits",
    "Score",
    "Scores",
    "SpecialToken",
    "Result",
    "StartEstimate",
    "Started",
    "Stream",
    "StructuredOutput",
    "Tenant",
    "TenantLimits",
    "TenantUsage",
    "ContentPart",
    "Function",
    "FunctionDescription",
    "FunctionName",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "ToolChoice",
    "Tier",
    "TierUsage",
    "TokenLogprob",
    "TokenCount",
    "Tokens",
    "TopLogprob",
    "TunedConcurrency",
    "Usage",
    "WeightForm",
    "errors",
}
CHECKPOINT = {
    "FileEntry",
    "Inspection",
    "OpenCheckpoint",
    "PartitionEntry",
    "TensorEntry",
    "inspect",
    "load",
    "open",
    "pack",
    "save",
    "verify",
}
METHODS = {
    "create_key",
    "keys",
    "revoke_key",
    "address",
    "batch",
    "batch_results",
    "batches",
    "cancel",
    "cancel_batch",
    "close",
    "complete",
    "delete",
    "delete_batch",
    "deploy",
    "deployment",
    "deployments",
    "drain",
    "embed",
    "explain",
    "detokenize",
    "generate",
    "instances",
    "migrate",
    "model",
    "nodes",
    "pin",
    "pins",
    "prefetch",
    "receipt",
    "render_chat",
    "score",
    "submit_batch",
    "tokenize",
    "token_texts",
    "count_tokens",
    "set_tenant",
    "tenants",
    "undrain",
    "unpin",
    "watch",
    "watch_deployment",
}


def test_the_names_are_these() -> None:
    assert set(sllm.__all__) == PUBLIC
    assert set(dir(sllm)) == PUBLIC
    for name in PUBLIC:
        assert getattr(sllm, name) is not None


def test_other_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Spam'"):
        sllm.Spam  # noqa: B018 - on purpose


def test_the_names_of_the_checkpoint_library_are_these() -> None:
    assert set(checkpoint.__all__) == CHECKPOINT
    assert set(dir(checkpoint)) == CHECKPOINT
    for name in CHECKPOINT:
        assert getattr(checkpoint, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'Spam'"):
        checkpoint.Spam  # noqa: B018 - on purpose


def test_the_functions_of_the_checkpoint_library_take_these() -> None:
    parameters = {
        name: list(inspect.signature(getattr(checkpoint, name)).parameters)
        for name in ("inspect", "load", "open", "pack", "save", "verify")
    }
    assert parameters == {
        "inspect": ["path"],
        "load": ["path", "verify", "threads"],
        "open": ["path"],
        "pack": ["source_dir", "destination", "dtype", "progress"],
        "save": ["state_dict", "path"],
        "verify": ["path", "progress"],
    }


@pytest.mark.parametrize("name", ["Client", "AsyncClient"])
def test_the_clients_can_do_this(name: str) -> None:
    cls = getattr(sllm, name)
    instance_attributes = set(vars(cls("localhost:1"))) if name == "AsyncClient" else set()
    public = {one for one in {*dir(cls), *instance_attributes} if not one.startswith("_")}
    assert public == METHODS


@pytest.mark.parametrize(
    "module",
    [
        "batches",
        "deployments",
        "embeddings",
        "events",
        "migrations",
        "nodes",
        "operations",
        "tenants",
    ],
)
def test_records_are_frozen(module: str) -> None:
    found = vars(importlib.import_module(f"sllm.client.types.{module}")).values()
    classes = [one for one in found if isinstance(one, type) and dataclasses.is_dataclass(one)]
    assert classes
    for cls in classes:
        assert vars(cls)["__dataclass_params__"].frozen, cls


def test_the_package_alone_brings_no_grpc() -> None:
    script = "import sys, sllm; from sllm import errors; sys.exit('grpc' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_the_checkpoint_library_alone_brings_no_torch() -> None:
    script = "import sys; from sllm import checkpoint; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
