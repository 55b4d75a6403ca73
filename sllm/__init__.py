"""Serverless serving of large language models: many models, few accelerators.

Every name is imported when it is first used: a server, a worker before it forks, or a command pays
for what it needs and no more.
"""

TYPE_CHECKING = False  # as type checkers know it: importing typing takes longer than all the rest

if TYPE_CHECKING:
    from sllm import errors
    from sllm.client.aio import AsyncClient
    from sllm.client.stream import AsyncStream
    from sllm.client.sync import Client, Stream
    from sllm.client.types.batches import Batch, BatchRequest, BatchResult
    from sllm.client.types.chats import (
        ChatMessage,
        ContentPart,
        Function,
        FunctionDescription,
        FunctionName,
        NamedTool,
        StructuredOutput,
        Tool,
        ToolCall,
        ToolChoice,
    )
    from sllm.client.types.deployments import (
        Adapter,
        Deployment,
        Instance,
        KvShare,
        LearnedKeepTimes,
        Model,
        TunedConcurrency,
    )
    from sllm.client.types.embeddings import Embedding, Embeddings, Score, Scores
    from sllm.client.types.enums import (
        BatchState,
        CallerRole,
        DeploymentState,
        FinishReason,
        InstanceState,
        LoadPhase,
        MigrationOutcome,
        MigrationReason,
        MoveWay,
        PhaseKind,
        PlacementAction,
        Tier,
    )
    from sllm.client.types.events import (
        CacheMove,
        Choice,
        ChoiceFinished,
        Event,
        Finished,
        Loading,
        Migrated,
        Progress,
        PromptLogprob,
        PromptLogprobs,
        Queued,
        Result,
        Started,
        TokenLogprob,
        Tokens,
        ToolCallDelta,
        TopLogprob,
        Usage,
    )
    from sllm.client.types.keys import CreatedKey, Key
    from sllm.client.types.migrations import Migration, RequestMigration
    from sllm.client.types.models import ModelDetails, RequestLimits, SpecialToken, TokenCount
    from sllm.client.types.nodes import (
        CheckpointCopy,
        Device,
        Link,
        Node,
        NodeMemory,
        TierUsage,
        WeightForm,
    )
    from sllm.client.types.operations import (
        Cluster,
        DeploymentLoad,
        DrainProgress,
        EndedRequest,
        InstanceLoad,
        Pin,
        Placement,
        PlacementCandidate,
        Prefetched,
        RequestReceipt,
        StartEstimate,
    )
    from sllm.client.types.receipts import Phase, Receipt
    from sllm.client.types.tenants import Tenant, TenantLimits, TenantUsage
    from sllm.embedding.purpose import Purpose

_WHEN_USED = {
    "AsyncClient": "sllm.client.aio",
    "AsyncStream": "sllm.client.stream",
    "Client": "sllm.client.sync",
    "Purpose": "sllm.embedding.purpose",
    "Stream": "sllm.client.sync",
}
_TYPES = tuple(
    f"sllm.client.types.{name}"
    for name in (
        *("batches", "chats", "deployments", "embeddings", "enums", "events"),
        *("keys", "migrations", "models", "nodes", "operations", "receipts", "tenants"),
    )
)
"""What all other names are of."""

__all__ = [
    "Adapter",
    "AsyncClient",
    "AsyncStream",
    "Batch",
    "BatchRequest",
    "BatchResult",
    "BatchState",
    "CacheMove",
    "CallerRole",
    "ChatMessage",
    "CheckpointCopy",
    "Choice",
    "ChoiceFinished",
    "Client",
    "Cluster",
    "ContentPart",
    "CreatedKey",
    "Deployment",
    "DeploymentLoad",
    "DeploymentState",
    "Device",
    "DrainProgress",
    "Embedding",
    "Embeddings",
    "EndedRequest",
    "Event",
    "FinishReason",
    "Finished",
    "Function",
    "FunctionDescription",
    "FunctionName",
    "Instance",
    "InstanceLoad",
    "InstanceState",
    "Key",
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
    "RequestLimits",
    "RequestMigration",
    "RequestReceipt",
    "Result",
    "Score",
    "Scores",
    "SpecialToken",
    "StartEstimate",
    "Started",
    "Stream",
    "StructuredOutput",
    "Tenant",
    "TenantLimits",
    "TenantUsage",
    "Tier",
    "TierUsage",
    "TokenCount",
    "TokenLogprob",
    "Tokens",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "ToolChoice",
    "TopLogprob",
    "TunedConcurrency",
    "Usage",
    "WeightForm",
    "errors",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'sllm' has no attribute {name!r}")
    import importlib

    if name == "errors":
        return importlib.import_module("sllm.errors")
    places = (_WHEN_USED[name],) if name in _WHEN_USED else _TYPES
    modules = map(importlib.import_module, places)
    return next(vars(module)[name] for module in modules if name in vars(module))


def __dir__() -> list[str]:
    return __all__
