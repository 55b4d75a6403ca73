"""What those who watch the cluster see, as the protocol's messages."""

from collections.abc import Iterable, Mapping

from serverlessllm.v1 import cluster_service_pb2 as pb
from serverlessllm.v1 import types_pb2 as types_pb

from sllm.control.types.views import (
    ClusterState,
    DeploymentLoad,
    EndedRequest,
    InstanceLoad,
    NodeEntry,
    Revision,
)
from sllm.control.wire import common, fleet, generations


def response(revision: Revision) -> pb.WatchClusterResponse:
    """One revision."""
    body = revision.body
    if isinstance(body, ClusterState):
        full = pb.ClusterState(
            nodes=_nodes(body.nodes.values()),
            instances=_instances(body.instances.values()),
            deployments=_deployments(body.deployments),
            ended_requests=_ended(body.ended),
        )
        return pb.WatchClusterResponse(revision=revision.number, full=full)
    delta = pb.ClusterDelta(
        nodes=_nodes(body.nodes.changed.values()),
        instances=_instances(body.instances.changed.values()),
        deployments=_deployments(body.deployments.changed),
        gone_nodes=sorted(body.nodes.gone),
        gone_instances=sorted(body.instances.gone),
        gone_deployments=sorted(body.deployments.gone),
        ended_requests=_ended(body.ended),
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
            loading=common.loading_message(one.loading) if one.loading else None,
            moving_to=one.moving_to,
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


def _ended(requests: Iterable[EndedRequest]) -> list[pb.EndedRequest]:
    return [_ended_request(one) for one in requests]


def _ended_request(one: EndedRequest) -> pb.EndedRequest:
    message = pb.EndedRequest(
        request_id=one.request_id,
        deployment=one.deployment,
        ended_at=common.timestamp(one.ended_at),
        duration=common.duration(one.seconds),
        outcome=one.outcome,
        generated_tokens=one.generated_tokens,
        adapter=one.adapter,
        adapter_identity=one.adapter_identity,
    )
    if one.receipt:
        generations.fill_receipt(message, one.receipt)
    return message
