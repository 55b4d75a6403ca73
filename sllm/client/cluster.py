"""The client as operators use it: the cluster as it is, and what they have it do."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from serverlessllm.v1 import cluster_service_pb2 as cluster_pb

from sllm import errors
from sllm.client.base import BaseClient
from sllm.client.connection import PAGE_SIZE
from sllm.client.types import operations
from sllm.client.types.deployments import Instance
from sllm.client.types.enums import MoveWay, Tier
from sllm.client.types.events import Progress
from sllm.client.types.migrations import Migration
from sllm.client.types.nodes import Node
from sllm.client.watching import Picture
from sllm.client.wire import events, listings, migrations, requests
from sllm.client.wire import operations as messages


class ClusterClient(BaseClient):
    """The part of a client that is about nodes and instances: see `AsyncClient`."""

    # --- as it is -----------------------------------------------------------------------------

    async def instances(self, deployment: str | None = None) -> list[Instance]:
        """All instances, or those of one deployment, in order of their ids."""
        with requests.fitting():
            request = cluster_pb.ListInstancesRequest(
                deployment=deployment or "", page_size=PAGE_SIZE
            )
        pages = self._connection.pages(self._connection.cluster.ListInstances, request)
        return [listings.instance(one) async for page in pages for one in page.instances]

    async def nodes(self) -> list[Node]:
        """All nodes, in order of their ids."""
        request = cluster_pb.ListNodesRequest(page_size=PAGE_SIZE)
        pages = self._connection.pages(self._connection.cluster.ListNodes, request)
        return [listings.node(one) async for page in pages for one in page.nodes]

    async def watch(self) -> AsyncGenerator[operations.Cluster]:
        """The whole cluster, now and whenever something has changed, until it is left."""
        request, picture = cluster_pb.WatchClusterRequest(), Picture()
        watch = self._connection.stream(self._connection.cluster.WatchCluster, request)
        async with aclosing(watch) as watched:
            async for message in watched:
                yield picture.take(message)

    async def receipt(self, request_id: str | None = None) -> operations.RequestReceipt:
        """Where the time to a request's first token went; the control plane keeps the last 1,000.

        Args:
            request_id: of a request that has ended; each of several samples has its own. None: the
                one that ended last.

        Raises:
            errors.RequestNotFound: It has had no token, or is kept no longer.
        """
        with requests.fitting():
            request = cluster_pb.GetReceiptRequest(request_id=request_id or "")
        response = await self._connection.call(self._connection.cluster.GetReceipt, request)
        return messages.request_receipt(response)

    # --- what is done to it -------------------------------------------------------------------

    async def explain(self, deployment: str, zone: str | None = None) -> operations.Placement:
        """What placement would decide now for one more request from a zone, and why.

        Raises:
            errors.DeploymentNotFound: There is none of this name.
        """
        with requests.fitting():
            request = cluster_pb.ExplainPlacementRequest(deployment=deployment, zone=zone)
        response = await self._connection.call(self._connection.cluster.ExplainPlacement, request)
        return messages.placement(response)

    async def prefetch(
        self,
        deployment: str | None = None,
        *,
        source: str | None = None,
        dtype: str | None = None,
        tier: str = Tier.DRAM,
        node: str | None = None,
        ttl: float | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> operations.Prefetched:
        """Brings a checkpoint up to a tier before anybody asks for it, and keeps it there.

        Args:
            deployment: name of the deployment whose checkpoint is meant; or
            source: a URL such as file:///models/tiny.
            dtype: with `source`: torch dtype that weights are converted to when imported.
            tier: "SSD" or "DRAM".
            node: id of the node. None: where an instance would start soonest.
            ttl: seconds for which it is kept from eviction. None: 10 minutes.
            request_id: makes a repeated call join the first, or get its end. None: one is made.
            timeout: seconds to wait; the load goes on all the same. None: as long as it takes.
            on_progress: told how far the load is, in the event loop's thread.

        Raises:
            errors.InvalidArgument: Not exactly one of deployment and source was given, or the
                tier or the ttl makes no sense.
            errors.NodeNotFound: There is no such node.
            errors.NodeDraining: It takes nothing new.
            errors.ModelTooLarge: The tier could not hold it even if it were empty.
            errors.NoCapacity: Too much of the tier is in use or pinned.
            errors.TenantLimit: The caller's tenant may not have so many bytes there; one that is
                bounded prefetches no sources.
        """
        if (deployment is None) == (source is None):
            raise errors.InvalidArgument("give either a deployment or a source to prefetch")
        with requests.fitting():
            request = cluster_pb.PrefetchRequest(
                request_id=request_id or requests.new_request_id(),
                dtype=dtype or "",
                tier=messages.tier_value(tier),
                node_id=node or "",
                ttl=messages.duration(ttl),
            )
            if deployment is not None:
                request.deployment = deployment
            if source is not None:
                request.source = source
        prefetch = self._connection.stream(self._connection.cluster.Prefetch, request, timeout)
        async with aclosing(prefetch) as steps:
            async for step in steps:
                if step.HasField("done"):
                    return messages.prefetched(step.done)
                if step.HasField("loading") and on_progress:
                    on_progress(events.progress(step.loading))
        raise errors.Internal("the control plane ended a prefetch without a word")

    async def pin(
        self,
        deployment: str,
        *,
        node: str,
        tier: str = Tier.DRAM,
        ttl: float | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> operations.Pin:
        """Keeps a deployment's checkpoint on a tier of a node; it is brought there if need be.

        Args:
            deployment: name of the deployment.
            node: id of the node.
            tier: "SSD" or "DRAM"; for DRAM, a copy on SSD stays as well.
            ttl: seconds until the pin ends by itself. None: it does not.
            request_id: makes a repeated call change nothing. None: one is made.
            timeout: seconds to wait; the pin comes all the same. None: as long as it takes.
            on_progress: told how far the load is, in the event loop's thread.

        Raises:
            errors.DeploymentNotFound: There is no such deployment.
            errors.InvalidArgument: The tier or the ttl makes no sense.
            errors.NodeNotFound: There is no such node.
            errors.NodeDraining: It takes nothing new.
            errors.ModelTooLarge: The tier could not hold it even if it were empty.
            errors.NoCapacity: Too much of the tier is in use or pinned.
        """
        with requests.fitting():
            request = cluster_pb.PinRequest(
                request_id=request_id or requests.new_request_id(),
                deployment=deployment,
                tier=messages.tier_value(tier),
                node_id=node,
                ttl=messages.duration(ttl),
            )
        pin = self._connection.stream(self._connection.cluster.Pin, request, timeout)
        async with aclosing(pin) as steps:
            async for step in steps:
                if step.HasField("done"):
                    return messages.pin(step.done)
                if on_progress:
                    on_progress(events.progress(step.loading))
        raise errors.Internal("the control plane ended a pin without a word")

    async def unpin(
        self, deployment: str, *, tier: str | None = None, node: str | None = None
    ) -> list[operations.Pin]:
        """Ends pins of a deployment, and returns them.

        Args:
            deployment: name of the deployment.
            tier: "SSD" or "DRAM". None: both.
            node: id of the node. None: every one.

        Raises:
            errors.DeploymentNotFound: There is no such deployment.
            errors.PinNotFound: Nothing of it is pinned there.
        """
        with requests.fitting():
            request = cluster_pb.UnpinRequest(
                request_id=requests.new_request_id(),
                deployment=deployment,
                tier=messages.tier_value(tier) if tier else 0,  # type: ignore[arg-type]  # unset
                node_id=node or "",
            )
        response = await self._connection.call(self._connection.cluster.Unpin, request)
        return [messages.pin(one) for one in response.unpinned]

    async def pins(self, deployment: str | None = None) -> list[operations.Pin]:
        """All pins, or those of one deployment, in order of deployment, tier and node.

        Raises:
            errors.DeploymentNotFound: There is no such deployment.
        """
        with requests.fitting():
            request = cluster_pb.ListPinsRequest(deployment=deployment or "", page_size=PAGE_SIZE)
        pages = self._connection.pages(self._connection.cluster.ListPins, request)
        return [messages.listed_pin(one) async for page in pages for one in page.pins]

    async def drain(
        self,
        node: str,
        *,
        grace: float | None = None,
        force: bool = False,
        timeout: float | None = None,
        on_progress: Callable[[operations.DrainProgress], None] | None = None,
    ) -> None:
        """Gives a node no new work, and returns when it runs nothing any more.

        What runs there goes on elsewhere, or else ends there. The node goes on being drained until
        `undrain`, also when this call is left.

        Args:
            node: id of the node.
            grace: seconds that running requests have. None: as long as they take.
            force: drain it even if deployments that have requests are left without a node.
            timeout: seconds to wait. None: as long as it takes.
            on_progress: told what still runs, in the event loop's thread.

        Raises:
            errors.InvalidArgument: The grace is negative.
            errors.NodeNotFound: There is no such node.
            errors.NodeNeeded: It is the last node for a deployment that has requests.
            errors.NodeLost: It went before it was drained.
            errors.Cancelled: It was undrained meanwhile.
        """
        with requests.fitting():
            request = cluster_pb.DrainNodeRequest(
                request_id=requests.new_request_id(),
                node_id=node,
                grace=messages.duration(grace),
                force=force,
            )
        drain = self._connection.stream(self._connection.cluster.DrainNode, request, timeout)
        async with aclosing(drain) as steps:
            async for step in steps:
                if step.HasField("progress") and on_progress:
                    on_progress(messages.drain_progress(step.progress))

    async def undrain(self, node: str) -> None:
        """Gives a node new work again. What was told to end ends all the same.

        Raises:
            errors.NodeNotFound: There is no such node.
        """
        with requests.fitting():
            request = cluster_pb.UndrainNodeRequest(
                request_id=requests.new_request_id(), node_id=node
            )
        await self._connection.call(self._connection.cluster.UndrainNode, request)

    async def migrate(
        self,
        *,
        request_id: str | None = None,
        instance_id: str | None = None,
        to_node: str | None = None,
        way: MoveWay | str | None = None,
        timeout: float | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Migration:
        """Has running generations go on at another node, while their callers read on.

        What cannot be moved goes on where it is.

        Args:
            request_id: the one request to move; or
            instance_id: the instance to move with all its requests, which ends then.
            to_node: where to. None: where they can go on soonest.
            way: how their KV caches are to come there: "TOKENS" or, where they can, "PAGES". None:
                by what is sooner, of each.
            timeout: seconds for all of it. None: as long as it takes.
            on_progress: told how far the destination's start has come.

        Raises:
            errors.RequestNotFound: The request is not being generated, or no longer.
            errors.InstanceNotFound: The instance is not there, or not ready.
            errors.NodeNotFound: There is no such node.
            errors.InvalidArgument: It is there already, or neither or both are named.
            errors.NoCapacity: There is no room for it.
            errors.SllmError: Why the one request has stayed where it was.
        """
        request = requests.migrate(request_id, instance_id, to_node, way)
        migrate = self._connection.stream(self._connection.cluster.Migrate, request, timeout)
        async with aclosing(migrate) as steps:
            return await migrations.migration(steps, on_progress, alone=request_id is not None)
