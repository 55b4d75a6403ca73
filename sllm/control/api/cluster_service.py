"""ClusterService: the cluster as it is, and what operators have it do."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from serverlessllm.v1 import cluster_service_pb2 as pb
from serverlessllm.v1.cluster_service_pb2_grpc import ClusterServiceServicer

from sllm import bounds, errors
from sllm.control.access import principals
from sllm.control.api.pagination import page_of
from sllm.control.control_plane import ControlPlane
from sllm.control.routing.migrator import Migrator
from sllm.control.types.calls import DONE_ALONE
from sllm.control.types.migrations import MigrationAsk, MoveWay
from sllm.control.wire import common, fleet, generations, migrations, operations, watch


class ClusterServicer(ClusterServiceServicer):
    """Each method parses, calls and translates."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self._fleet = plane.state.fleet
        self._migrator = plane.migrator

    async def Migrate(
        self, request: pb.MigrateRequest, context: Any
    ) -> AsyncIterator[pb.MigrateResponse]:
        """Has generations go on at another node."""
        ask = _migration_ask(request, self._migrator)
        async with aclosing(self._migrator.migrate(ask)) as migration:
            async for news in migration:
                yield migrations.migrate_response(news)

    async def ListNodes(self, request: pb.ListNodesRequest, context: Any) -> pb.ListNodesResponse:
        """Lists nodes, page by page."""
        page = page_of(self._fleet.nodes, request.page_size, request.page_token)
        draining = self._plane.state.draining
        messages = [
            fleet.node_message(self._fleet.nodes[node_id], draining=node_id in draining)
            for node_id in page.keys
        ]
        return pb.ListNodesResponse(nodes=messages, next_page_token=page.next_token)

    async def ListInstances(
        self, request: pb.ListInstancesRequest, context: Any
    ) -> pb.ListInstancesResponse:
        """Lists instances, page by page."""
        sees = principals.current().sees
        instances = {
            one.instance_id: one
            for one in self._fleet.known_instances()
            if request.deployment in ("", one.deployment) and sees(one.deployment)
        }
        page = page_of(instances, request.page_size, request.page_token)
        ends_at = self._plane.state.orphans.ends_at
        messages = [fleet.instance_message(instances[key], ends_at(key)) for key in page.keys]
        return pb.ListInstancesResponse(instances=messages, next_page_token=page.next_token)

    async def ExplainPlacement(
        self, request: pb.ExplainPlacementRequest, context: Any
    ) -> pb.ExplainPlacementResponse:
        """Tells what placement would decide now, and why."""
        zone = bounds.zone(request.zone, "zone")
        explanation = self._plane.explaining.explain(request.deployment, zone)
        return operations.explain_response(explanation)

    async def GetReceipt(
        self, request: pb.GetReceiptRequest, context: Any
    ) -> pb.GetReceiptResponse:
        """Tells where the time of a request went that has ended."""
        sees = principals.current().sees
        ended = self._plane.state.receipts.find(request.request_id, sees)
        return pb.GetReceiptResponse(
            request_id=ended.request_id,
            deployment=ended.deployment,
            receipt=generations.receipt_message(ended.receipt),
        )

    async def Prefetch(
        self, request: pb.PrefetchRequest, context: Any
    ) -> AsyncIterator[pb.PrefetchResponse]:
        """Brings a checkpoint up, and keeps it there for a while."""
        ask = operations.prefetch_ask(request, principals.current())
        call = common.call(request, operations.PREFETCHED)
        async with aclosing(self._plane.prefetching.prefetch(ask, call)) as steps:
            async for step in steps:
                yield operations.prefetch_response(step)

    async def Pin(self, request: pb.PinRequest, context: Any) -> AsyncIterator[pb.PinResponse]:
        """Keeps a checkpoint on a tier of a node."""
        place, ttl = operations.pin_place(request), operations.ttl_of(request)
        call = common.call(request, operations.PINNED)
        async with aclosing(self._plane.pinning.pin(place, ttl, call)) as steps:
            async for step in steps:
                yield operations.pin_response(step)

    async def Unpin(self, request: pb.UnpinRequest, context: Any) -> pb.UnpinResponse:
        """Ends pins."""
        tier, call = operations.unpin_tier(request), common.call(request, operations.UNPINNED)
        pinning = self._plane.pinning
        unpinned = await pinning.unpin(request.deployment, tier, request.node_id, call)
        return operations.unpin_response(unpinned)

    async def ListPins(self, request: pb.ListPinsRequest, context: Any) -> pb.ListPinsResponse:
        """Lists pins, page by page."""
        sees, pins = principals.current().sees, self._plane.pinning.pins(request.deployment)
        pins = {key: one for key, one in pins.items() if sees(one[0].place.deployment)}
        page = page_of(pins, request.page_size, request.page_token)
        listed = [operations.listed_pin(*pins[key]) for key in page.keys]
        return pb.ListPinsResponse(pins=listed, next_page_token=page.next_token)

    async def DrainNode(
        self, request: pb.DrainNodeRequest, context: Any
    ) -> AsyncIterator[pb.DrainNodeResponse]:
        """Gives a node no new work, and follows what it runs to its end."""
        grace, call = operations.grace_of(request), common.call(request, DONE_ALONE)
        drains = self._plane.drains
        async with aclosing(drains.drain(request.node_id, grace, request.force, call)) as steps:
            async for progress in steps:
                yield operations.drain_response(progress)
        yield operations.DRAINED

    async def UndrainNode(
        self, request: pb.UndrainNodeRequest, context: Any
    ) -> pb.UndrainNodeResponse:
        """Gives a node new work again."""
        await self._plane.drains.undrain(request.node_id, common.call(request, DONE_ALONE))
        return pb.UndrainNodeResponse()

    async def WatchCluster(
        self, request: pb.WatchClusterRequest, context: Any
    ) -> AsyncIterator[pb.WatchClusterResponse]:
        """Tells the whole state of the cluster, then what changes of it."""
        async with aclosing(self._plane.cluster_watch.follow()) as revisions:
            async for revision in revisions:
                yield watch.response(revision)


def _migration_ask(request: pb.MigrateRequest, migrator: Migrator) -> MigrationAsk:
    """What an operator wants to move.

    Raises:
        errors.InvalidArgument: It names neither a request nor an instance, or an unknown way.
        errors.NotFound: What it names is not there.
    """
    to_node = request.to_node_id or None
    way = bounds.one_of(request.way, tuple(MoveWay), "way") if request.way else None
    if request.request_id:
        return replace(migrator.of_request(request.request_id, to_node), way=way)
    if request.instance_id:
        return replace(migrator.of_instance(request.instance_id, to_node), way=way)
    raise errors.InvalidArgument("name a request or an instance to migrate")
