"""The cluster put together from what WatchCluster sends: all of it first, then changes."""

from collections import deque
from collections.abc import Iterable
from typing import Final, TypeVar

from serverlessllm.v1 import cluster_service_pb2 as pb
from serverlessllm.v1 import types_pb2 as types_pb

from sllm.client.types import operations
from sllm.client.types.nodes import Node
from sllm.client.wire import events, listings
from sllm.client.wire.values import moment, seconds

MOST_ENDED: Final = 64
"""Requests that have ended and are told of."""

Entry = TypeVar("Entry")


class Picture:
    """The cluster as far as it was told."""

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}
        self._instances: dict[str, operations.InstanceLoad] = {}
        self._deployments: dict[str, operations.DeploymentLoad] = {}
        self._ended: deque[operations.EndedRequest] = deque(maxlen=MOST_ENDED)

    def take(self, message: pb.WatchClusterResponse) -> operations.Cluster:
        """Takes one message in, and gives the cluster as it is then."""
        if message.HasField("full"):
            self._nodes, self._instances, self._deployments = {}, {}, {}
            self._ended.clear()
            full = message.full
            self._add(full.nodes, full.instances, full.deployments)
            self._ended.extend(map(_ended_request, full.ended_requests))
        else:
            delta = message.delta
            self._add(delta.nodes, delta.instances, delta.deployments)
            _drop(self._nodes, delta.gone_nodes)
            _drop(self._instances, delta.gone_instances)
            _drop(self._deployments, delta.gone_deployments)
            self._ended.extend(map(_ended_request, delta.ended_requests))
        return operations.Cluster(
            revision=message.revision,
            nodes=_ordered(self._nodes),
            instances=_ordered(self._instances),
            deployments=_ordered(self._deployments),
            ended_requests=tuple(self._ended),
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
        instance=listings.instance(one.instance),
        in_flight=one.in_flight,
        generated_tokens=one.generated_tokens,
        loading=events.progress(one.loading) if one.HasField("loading") else None,
        moving_to=tuple(one.moving_to),
    )


def _ended_request(one: pb.EndedRequest) -> operations.EndedRequest:
    return operations.EndedRequest(
        request_id=one.request_id,
        deployment=one.deployment,
        ended_at=moment(one.ended_at),
        duration=seconds(one.duration),
        outcome=one.outcome,
        generated_tokens=one.generated_tokens,
        receipt=events.receipt(one.receipt) if one.HasField("receipt") else None,
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
