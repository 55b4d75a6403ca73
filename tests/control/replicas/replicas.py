"""Several control planes on a real etcd, in this process."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any

from sllm import rpc
from sllm.control.config import ControlConfig, EtcdConfig
from sllm.control.election.ballot import Ballot
from sllm.control.etcd.client import Etcd
from sllm.control.server import running
from sllm.tls.identity import Role
from tests.control.clusters import Caller
from tests.tls.certs import Certs, dial_with


class Replica:
    """One control plane, and a caller of it."""

    def __init__(self, config: ControlConfig, certs: Certs | None) -> None:
        self._config = config
        self._tls = certs.tls(Role.CONTROL) if certs else None
        self._dial = dial_with(None, certs.authority, Role.CONTROL) if certs else rpc.channel
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        addresses = await self._stack.enter_async_context(running(self._config, self._tls))
        self.address, self.peers = addresses.callers, addresses.peers
        self.channel = await self._stack.enter_async_context(self._dial(self.address))
        self.caller = Caller(self.channel)

    async def stop(self) -> None:
        await self._stack.aclose()


class Replicas:
    """All of them, and who leads."""

    def __init__(
        self, directory: Path, at: EtcdConfig, certs: Certs | None = None, **settings: Any
    ) -> None:
        self._certs = certs
        self._config: dict[str, Any] = {
            "directory": directory,
            "etcd": at,
            "listen_address": "127.0.0.1:0",
            "leader_lease_seconds": 5,
            "stop_grace_seconds": 0.5,
            **settings,
        }
        self._at = at
        self.all: list[Replica] = []

    async def add(self) -> Replica:
        replica = Replica(ControlConfig(**self._config), self._certs)
        await replica.start()
        self.all.append(replica)
        return replica

    async def remove(self, replica: Replica) -> None:
        self.all.remove(replica)
        await replica.stop()

    async def leader(self) -> Replica:
        def address() -> str:
            with closing(Etcd(self._at)) as etcd:
                leader = Ballot(etcd, "", "", 2).look()
            return leader.address if leader else ""

        def found() -> list[Replica]:
            return [one for one in self.all if one.peers == addresses[-1]]

        addresses = [""]
        while not found():
            addresses.append(await asyncio.to_thread(address))
        return found()[0]

    async def follower(self) -> Replica:
        leader = await self.leader()
        return next(one for one in self.all if one is not leader)


@asynccontextmanager
async def replicas_of(directory: Path, at: EtcdConfig, **settings: Any) -> AsyncIterator[Replicas]:
    replicas = Replicas(directory, at, **settings)
    try:
        await replicas.add()
        await replicas.add()
        yield replicas
    finally:
        for replica in list(replicas.all):
            await replicas.remove(replica)
