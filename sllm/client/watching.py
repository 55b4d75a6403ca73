"""The cluster put together from what WatchCluster sends: all of it first, then changes."""

from collections.abc import Iterable
from typing import TypeVar

from serverlessllm.v1 import cluster_service_pb2 as pb
from serverlessllm.v1 import types_pb2 as types_pb

from sllm.client.types import operations
from sllm.client.types.nodes import Node
from sllm.client.wire import listings

Entry = TypeVar("Entry")


class Picture:
    """The cluster as far as it was told."""

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}
        self._instances: dict[str, operations.InstanceLoad] = {}
        self._deployments: dict[str, operations.DeploymentLoad] = {}

    def take(self, message: pb.WatchClusterResponse) -> operations.Cluster:
        """Takes one message in, and gives the cluster as it is then."""
        if message.HasField("full"):
            self._nodes, self._instances, self._deployments = {}, {}, {}
            full = message.full
            self._add(full.nodes, full.instances, full.deployments)
        else:
            delta = message.delta
            self._add(delta.nodes, delta.instances, delta.deployments)
            _drop(self._nodes, delta.gone_nodes)
            _drop(self._instances, delta.gone_instances)
            _drop(self._deployments, delta.gone_deployments)
        return operations.Cluster(
            revision=message.revision,
            nodes=_ordered(self._nodes),
            instances=_ordered(self._instances),
            deployments=_ordered(self._deployments),
        )

    def _add(
        self,
        nodes: Iterable[types_pb.Node],
        instances: Iterable[pb.InstanceLoad],
        deployments: Iterable[pb.DeploymentLoad],
    ) -> None:
        self._nodes |= {one.node_id: listings.node(one) for one in nodes}
        self._instances |= {one.instance.instance_id: _instance_load(one) for one in instances}
        self._deployments |= {one.deployment: _deployment_load(one) for one in deployments}


def _instance_load(one: pb.InstanceLoad) -> operations.InstanceLoad:
    return operations.InstanceLoad(
        listings.instance(one.instance), one.in_flight, one.generated_tokens
    )


def _deployment_load(one: pb.DeploymentLoad) -> operations.DeploymentLoad:
    return operations.DeploymentLoad(
        deployment=one.deployment,
        queued_requests=one.queued_requests,
        ready_instances=one.ready_instances,
        starting_instances=one.starting_instances,
    )


def _drop(entries: dict[str, Entry], gone: Iterable[str]) -> None:
    for key in gone:
        entries.pop(key, None)


def _ordered(entries: dict[str, Entry]) -> tuple[Entry, ...]:
    return tuple(entries[key] for key in sorted(entries))
