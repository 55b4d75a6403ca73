"""What the protocol declares is there."""

import re
from pathlib import Path
from typing import Any

import pytest
from serverlessllm.v1 import (
    batch_service_pb2,
    cluster_service_pb2,
    deployment_service_pb2,
    embedding_service_pb2,
    fleet_service_pb2,
    inference_service_pb2,
    key_service_pb2,
    migration_service_pb2,
    model_service_pb2,
    node_service_pb2,
    peer_service_pb2,
    replica_service_pb2,
    tenant_service_pb2,
    worker_service_pb2,
)

import sllm
from sllm.control.api.batch_service import BatchServicer
from sllm.control.api.cluster_service import ClusterServicer
from sllm.control.api.deployment_service import DeploymentServicer
from sllm.control.api.embedding_service import EmbeddingServicer
from sllm.control.api.fleet_service import FleetServicer
from sllm.control.api.inference_service import InferenceServicer
from sllm.control.api.key_service import KeyServicer
from sllm.control.api.model_service import ModelServicer
from sllm.control.api.tenant_service import TenantServicer
from sllm.control.replicas.replica_service import ReplicaServicer
from sllm.node.api.embedding_service import EmbeddingServicer as NodeEmbeddingServicer
from sllm.node.api.inference_service import InferenceServicer as NodeInferenceServicer
from sllm.node.api.migration_service import MigrationServicer
from sllm.node.api.model_service import ModelServicer as NodeModelServicer
from sllm.node.api.node_service import NodeServicer
from sllm.node.api.peer_service import PeerServicer
from sllm.node.worker import embedding_service as worker_embedding
from sllm.node.worker import model_service as worker_models
from sllm.node.worker import service as worker

PACKAGE = Path(sllm.__file__).parent
PROTOS = PACKAGE.parent / "protos" / "serverlessllm" / "v1"

SERVICERS: list[tuple[Any, str, list[type]]] = [
    (batch_service_pb2, "BatchService", [BatchServicer]),
    (cluster_service_pb2, "ClusterService", [ClusterServicer]),
    (deployment_service_pb2, "DeploymentService", [DeploymentServicer]),
    (
        embedding_service_pb2,
        "EmbeddingService",
        [EmbeddingServicer, NodeEmbeddingServicer, worker_embedding.EmbeddingServicer],
    ),
    (fleet_service_pb2, "FleetService", [FleetServicer]),
    (
        inference_service_pb2,
        "InferenceService",
        [InferenceServicer, NodeInferenceServicer],
    ),
    (key_service_pb2, "KeyService", [KeyServicer]),
    (migration_service_pb2, "MigrationService", [MigrationServicer]),
    (
        model_service_pb2,
        "ModelService",
        [ModelServicer, NodeModelServicer, worker_models.ModelServicer],
    ),
    (node_service_pb2, "NodeService", [NodeServicer]),
    (replica_service_pb2, "ReplicaService", [ReplicaServicer]),
    (peer_service_pb2, "PeerService", [PeerServicer]),
    (tenant_service_pb2, "TenantService", [TenantServicer]),
    (worker_service_pb2, "WorkerService", [worker.WorkerServicer]),
]


@pytest.mark.parametrize(("module", "name", "servicers"), SERVICERS)
def test_every_rpc_has_a_handler(module: Any, name: str, servicers: list[type]) -> None:
    for method in module.DESCRIPTOR.services_by_name[name].methods:
        for servicer in servicers:
            assert method.name in vars(servicer), f"{servicer.__name__}.{method.name}"


CALLERS: list[tuple[Any, str, str]] = [
    (batch_service_pb2, "BatchService", "client"),
    (cluster_service_pb2, "ClusterService", "client"),
    (deployment_service_pb2, "DeploymentService", "client"),
    (embedding_service_pb2, "EmbeddingService", "client"),
    (fleet_service_pb2, "FleetService", "node"),
    (inference_service_pb2, "InferenceService", "client"),
    (key_service_pb2, "KeyService", "client"),
    (model_service_pb2, "ModelService", "client"),
    (peer_service_pb2, "PeerService", "node"),
    (tenant_service_pb2, "TenantService", "client"),
]


@pytest.mark.parametrize(("module", "name", "part"), CALLERS)
def test_every_rpc_has_a_caller(module: Any, name: str, part: str) -> None:
    sources = "\n".join(path.read_text() for path in (PACKAGE / part).rglob("*.py"))
    for method in module.DESCRIPTOR.services_by_name[name].methods:
        assert re.search(rf"\.{method.name}\b", sources), method.full_name


def test_every_service_is_listed_here() -> None:
    files = {path.stem for path in PROTOS.glob("*_service.proto")}
    assert {module.__name__.rpartition(".")[2] for module, _, _ in SERVICERS} == {
        f"{name}_pb2" for name in files
    }
    listed = {(module.__name__, name) for module, name, _ in SERVICERS}
    declared = {
        (module.__name__, name)
        for module, _, _ in SERVICERS
        for name in module.DESCRIPTOR.services_by_name
    }
    assert listed == declared


OPTIONS = (
    'option go_package = "serverlessllm/v1;serverlessllmv1";',
    "option java_multiple_files = true;",
)
"""What generators of other languages need to be told; changed, these break their users."""


@pytest.mark.parametrize("path", sorted(PROTOS.glob("*.proto")), ids=lambda path: path.stem)
def test_every_file_says_what_other_languages_need(path: Path) -> None:
    assert set(OPTIONS) <= set(path.read_text().splitlines())
