"""What each call takes, in one table: a call without a rule is refused."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sllm.control.types.access import CallerRole

USER, OPERATOR, ADMIN = CallerRole.USER, CallerRole.OPERATOR, CallerRole.ADMIN


@dataclass(frozen=True, slots=True)
class Rule:
    """What one method takes."""

    role: CallerRole | None = None
    """The least that its caller must be. None: no key is asked for."""
    shared: bool = False
    """Whether it shows or changes what tenants share, so that others than admins must be of the
    default one."""
    peers: bool = False
    """Whether it is for processes of the cluster alone, which are known by their certificates."""
    endless: bool = False
    """Whether it ends by its caller alone, so that it ends with its caller's key as well."""
    bounded: bool = False
    """Whether it makes requests, of which a tenant may have so many."""
    changes: tuple[str, ...] = ()
    """Fields of its messages that name what it changes. Empty: it changes nothing that lasts, and
    is not audited."""


_OURS: Final[Mapping[str, Rule]] = {
    "BatchService/SubmitBatch": Rule(USER, changes=("batch.batch_id",)),
    "BatchService/GetBatch": Rule(USER),
    "BatchService/ListBatches": Rule(USER),
    "BatchService/ReadBatchResults": Rule(USER),
    "BatchService/CancelBatch": Rule(USER, changes=("batch_id",)),
    "BatchService/DeleteBatch": Rule(USER, changes=("batch_id",)),
    "ClusterService/ListNodes": Rule(OPERATOR, shared=True),
    "ClusterService/ListInstances": Rule(OPERATOR),
    "ClusterService/ExplainPlacement": Rule(OPERATOR, shared=True),
    "ClusterService/Prefetch": Rule(OPERATOR, changes=("deployment", "tier", "node_id")),
    "ClusterService/Pin": Rule(OPERATOR, changes=("deployment", "tier", "node_id")),
    "ClusterService/Unpin": Rule(OPERATOR, changes=("deployment", "tier", "node_id")),
    "ClusterService/ListPins": Rule(OPERATOR),
    "ClusterService/DrainNode": Rule(ADMIN, changes=("node_id",)),
    "ClusterService/UndrainNode": Rule(ADMIN, changes=("node_id",)),
    "ClusterService/WatchCluster": Rule(OPERATOR, shared=True, endless=True),
    "ClusterService/Migrate": Rule(ADMIN, changes=("request_id", "instance_id", "to_node_id")),
    "ClusterService/GetReceipt": Rule(USER),
    "DeploymentService/Deploy": Rule(OPERATOR, changes=("name",)),
    "DeploymentService/GetDeployment": Rule(USER),
    "DeploymentService/ListDeployments": Rule(USER),
    "DeploymentService/DeleteDeployment": Rule(OPERATOR, changes=("name",)),
    "DeploymentService/WatchDeployment": Rule(USER, endless=True),
    "EmbeddingService/Embed": Rule(USER, bounded=True),
    "EmbeddingService/Score": Rule(USER, bounded=True),
    "FleetService/Report": Rule(peers=True),
    "InferenceService/Generate": Rule(USER, bounded=True),
    "InferenceService/Cancel": Rule(USER, changes=("request_id",)),
    "KeyService/CreateKey": Rule(ADMIN, changes=("key.key_id", "tenant")),
    "KeyService/ListKeys": Rule(ADMIN),
    "KeyService/RevokeKey": Rule(ADMIN, changes=("key_id",)),
    "ModelService/GetModel": Rule(USER),
    "ModelService/Tokenize": Rule(USER),
    "ModelService/CountTokens": Rule(USER),
    "ModelService/Detokenize": Rule(USER),
    "ModelService/RenderChat": Rule(USER),
    "ReplicaService/Carry": Rule(peers=True),
    "TenantService/ListTenants": Rule(USER),
    "TenantService/SetTenant": Rule(ADMIN, changes=("tenant",)),
}
_STANDARD: Final[Mapping[str, Rule]] = {
    "grpc.health.v1.Health/Check": Rule(),
    "grpc.health.v1.Health/List": Rule(),
    "grpc.health.v1.Health/Watch": Rule(),
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Rule(),
}
RULES: Final[Mapping[str, Rule]] = {
    **{f"/serverlessllm.v1.{method}": rule for method, rule in _OURS.items()},
    **{f"/{method}": rule for method, rule in _STANDARD.items()},
}
"""By the path of a method, as gRPC calls it."""
