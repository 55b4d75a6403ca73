"""Serverless serving of large language models: many models, few accelerators.

The clients are imported when they are first used: a server or a worker, which needs neither them
nor, before it forks, gRPC, does not pay for them.
"""

import importlib
from typing import TYPE_CHECKING

from sllm import errors
from sllm.client.types.deployments import Deployment, Instance, Model
from sllm.client.types.enums import (
    DeploymentState,
    FinishReason,
    InstanceState,
    LoadPhase,
    MigrationOutcome,
    MigrationReason,
    PhaseKind,
    PlacementAction,
    Tier,
)
from sllm.client.types.events import (
    ChatMessage,
    Event,
    Finished,
    Loading,
    Migrated,
    Phase,
    Progress,
    Queued,
    Receipt,
    Result,
    Started,
    TokenLogprob,
    Tokens,
    TopLogprob,
    Usage,
)
from sllm.client.types.migrations import Migration, RequestMigration
from sllm.client.types.nodes import CheckpointCopy, Device, Link, Node, TierUsage
from sllm.client.types.operations import (
    Cluster,
    DeploymentLoad,
    DrainProgress,
    InstanceLoad,
    Pin,
    Placement,
    PlacementCandidate,
    Prefetched,
    StartEstimate,
)

if TYPE_CHECKING:
    from sllm.client.aio import AsyncClient
    from sllm.client.stream import AsyncStream
    from sllm.client.sync import Client, Stream

_WHEN_USED = {
    "AsyncClient": "sllm.client.aio",
    "AsyncStream": "sllm.client.stream",
    "Client": "sllm.client.sync",
    "Stream": "sllm.client.sync",
}

__all__ = [
    "AsyncClient",
    "AsyncStream",
    "ChatMessage",
    "CheckpointCopy",
    "Client",
    "Cluster",
    "Deployment",
    "DeploymentLoad",
    "DeploymentState",
    "Device",
    "DrainProgress",
    "Event",
    "FinishReason",
    "Finished",
    "Instance",
    "InstanceLoad",
    "InstanceState",
    "Link",
    "LoadPhase",
    "Loading",
    "Migrated",
    "Migration",
    "MigrationOutcome",
    "MigrationReason",
    "Model",
    "Node",
    "Phase",
    "PhaseKind",
    "Pin",
    "Placement",
    "PlacementAction",
    "PlacementCandidate",
    "Prefetched",
    "Progress",
    "Queued",
    "Receipt",
    "RequestMigration",
    "Result",
    "StartEstimate",
    "Started",
    "Stream",
    "Tier",
    "TierUsage",
    "TokenLogprob",
    "Tokens",
    "TopLogprob",
    "Usage",
    "errors",
]


def __getattr__(name: str) -> object:
    if name not in _WHEN_USED:
        raise AttributeError(f"module 'sllm' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHEN_USED[name]), name)


def __dir__() -> list[str]:
    return __all__
