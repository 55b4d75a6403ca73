"""What those who watch the cluster see, as the protocol's messages."""

from collections.abc import Iterable, Mapping

from serverlessllm.v1 import cluster_service_pb2 as pb
from serverlessllm.v1 import types_pb2 as types_pb

from sllm.control.types.views import ClusterState, DeploymentLoad, InstanceLoad, NodeEntry, Revision
from sllm.control.wire import fleet


def response(revision: Revision) -> pb.WatchClusterResponse:
    """One revision."""
    body = revision.body
    if isinstance(body, ClusterState):
        full = pb.ClusterState(
            nodes=_nodes(body.nodes.values()),
            instances=_instances(body.instances.values()),
            deployments=_deployments(body.deployments),
        )
        return pb.WatchClusterResponse(revision=revision.number, full=full)
    delta = pb.ClusterDelta(
        nodes=_nodes(body.nodes.changed.values()),
        instances=_instances(body.instances.changed.values()),
        deployments=_deployments(body.deployments.changed),
        gone_nodes=sorted(body.nodes.gone),
        gone_instances=sorted(body.instances.gone),
        gone_deployments=sorted(body.deployments.gone),
    )
    return pb.WatchClusterResponse(revision=revision.number, delta=delta)


def _nodes(entries: Iterable[NodeEntry]) -> list[types_pb.Node]:
    return [fleet.node_message(one.view, draining=one.draining) for one in entries]


def _instances(loads: Iterable[InstanceLoad]) -> list[pb.InstanceLoad]:
    return [
        pb.InstanceLoad(
            instance=fleet.instance_message(one.instance),
            in_flight=one.in_flight,
            generated_tokens=one.tokens,
        )
        for one in loads
    ]


def _deployments(loads: Mapping[str, DeploymentLoad]) -> list[pb.DeploymentLoad]:
    return [
        pb.DeploymentLoad(
            deployment=name,
            queued_requests=load.queued,
            ready_instances=load.ready,
            starting_instances=load.starting,
        )
        for name, load in loads.items()
    ]
