"""One of several control planes on etcd, put together."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import grpc
from google.protobuf import descriptor
from serverlessllm.v1 import replica_service_pb2
from serverlessllm.v1.replica_service_pb2_grpc import add_ReplicaServiceServicer_to_server

from sllm import errors, rpc
from sllm.clock import MonotonicClock, SleeplessClock
from sllm.control.batches.etcd import EtcdBatches
from sllm.control.config import Addresses, ControlConfig
from sllm.control.control_plane import ControlPlane
from sllm.control.election.ballot import Ballot
from sllm.control.election.elector import Elector
from sllm.control.election.leadership import Leadership
from sllm.control.etcd.client import Etcd
from sllm.control.replicas.handlers import Handlers
from sllm.control.replicas.replica_service import ReplicaServicer
from sllm.control.replicas.roles import Roles
from sllm.control.state.etcd import EtcdStore

REPLICAS: Final = replica_service_pb2.DESCRIPTOR.services_by_name["ReplicaService"]
_EVERY_INTERFACE: Final = ("0.0.0.0", "[::]")


@dataclass(frozen=True, slots=True)
class Duties:
    """What a control plane does while it leads."""

    services: Sequence[descriptor.ServiceDescriptor]
    add_services: Callable[[Any, ControlPlane], None]
    """Adds its servicers to a gRPC server, or to what stands for one."""
    doors: Callable[[ControlPlane], Sequence[grpc.aio.ServerInterceptor]]
    """What each call passes on its way to a servicer, the outermost first."""
    prepare: Callable[[ControlPlane], Awaitable[None]]
    """What is done before anybody is answered."""
    work: Callable[[ControlPlane, rpc.Server], Sequence[Coroutine[Any, Any, None]]]
    """What goes on beside its callers, until it is cancelled."""
    listen: Callable[[rpc.Server], Awaitable[Addresses]]
    """Starts a server."""
    to_nodes: rpc.Dial
    to_leader: rpc.Dial


@asynccontextmanager
async def serving(
    config: ControlConfig, duties: Duties, server: rpc.Server
) -> AsyncIterator[Addresses]:
    """Has a server serve within the context, on the addresses that it gives.

    If its part in the election dies, what runs inside is cancelled and the error raised.

    Raises:
        errors.InvalidArgument: Others could not reach it.
    """
    assert config.etcd is not None
    _check_advertised(config)
    etcd = Etcd(config.etcd)
    try:
        replica = Replica(config, duties, etcd, server)
        addresses = await duties.listen(server)
        async with asyncio.TaskGroup() as group:
            running = group.create_task(replica.run(addresses), name="election")
            yield addresses
            running.cancel()
            await asyncio.wait([running])
            await replica.roles.close()
            await server.stop(config.stop_grace_seconds)
    finally:
        await server.stop(0)
        etcd.close()


def _check_advertised(config: ControlConfig) -> None:
    host = config.listen_address.rpartition(":")[0]
    if config.advertise_host is None and host in _EVERY_INTERFACE:
        raise errors.InvalidArgument(
            f"{host} is no address that others could reach: say --advertise, under which name or "
            "address the other control planes reach this one"
        )


class Replica:
    """Takes part in the election, and leads when it is elected."""

    def __init__(
        self, config: ControlConfig, duties: Duties, etcd: Etcd, server: rpc.Server
    ) -> None:
        """Adds itself to a server that has not started yet."""
        self._config = config
        self._duties = duties
        self._etcd = etcd
        self._server = server
        self._holder = uuid.uuid4().hex
        self._clock = SleeplessClock()
        self.roles = Roles(
            [*duties.services, REPLICAS],
            self._holder,
            self._clock,
            config.leader_patience_seconds,
            duties.to_leader,
            duties.to_nodes,
        )
        """Who answers calls."""
        server.grpc.add_generic_rpc_handlers((self.roles,))

    async def run(self, addresses: Addresses) -> None:
        """Takes part until it is cancelled; this is where it serves."""
        lease = self._config.leader_lease_seconds
        host, _, port = addresses.peers.rpartition(":")
        address = f"{self._config.advertise_host or host}:{port}"
        ballot = Ballot(self._etcd, self._holder, address, lease)
        await Elector(ballot, lease, self._clock, self._lead, self.roles.see).run()

    async def _lead(self, leadership: Leadership) -> None:
        loop = asyncio.get_running_loop()

        def in_doubt() -> None:
            loop.call_soon_threadsafe(leadership.give_up)  # whoever leads next reads it all anew

        store, batches = await asyncio.to_thread(self._open, leadership.since, in_doubt)
        plane = ControlPlane(
            self._config, store, batches, MonotonicClock(), self._duties.to_nodes, leadership
        )
        try:
            await plane.load()
            await self._duties.prepare(plane)
            await self._serve(plane, leadership)
        finally:
            self.roles.follow()
            plane.end_streams()
            for name in plane.state.deployments:
                await self._server.set_serving(name, False)  # whoever leads tells of them
            await plane.close()

    def _open(self, since: int, in_doubt: Callable[[], None]) -> tuple[EtcdStore, EtcdBatches]:
        most_bytes = self._config.max_batch_bytes_in_etcd
        store = EtcdStore(self._etcd, since, in_doubt)
        return store, EtcdBatches(self._etcd, since, most_bytes, in_doubt)

    async def _serve(self, plane: ControlPlane, leadership: Leadership) -> None:
        own = Handlers(self._duties.doors(plane))
        self._duties.add_services(own, plane)
        to: Any = own
        add_ReplicaServiceServicer_to_server(ReplicaServicer(own), to)
        self.roles.lead(own)
        async with asyncio.TaskGroup() as group:
            work = [group.create_task(one) for one in self._duties.work(plane, self._server)]
            await leadership.ended.wait()
            for task in work:
                task.cancel()
