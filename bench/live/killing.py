"""Servers killed and stopped while a trace runs, and what may have been lost by it."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import psutil

import sllm
from bench.live.asking import Asked
from bench.live.watching import Watching
from bench.local_cluster import LocalCluster

LEASE_SECONDS = 3.0
"""How long a node counts as a member without another message; the control plane's default."""
BACK_SECONDS = 60.0
"""A server that is not back by then is lost."""
SETTLE_SECONDS = 2.0
"""After which the workers elsewhere are looked at."""


@dataclass(slots=True)
class Blow:
    """One server killed, or stopped for longer than its lease. Moments are the trace's seconds."""

    server: str
    """"control" or the id of a node."""
    kind: str
    """"SIGKILL" or "SIGSTOP"."""
    at: float
    back: float | None = None
    """When it was there again, with all nodes in the fleet. None: it never was."""
    workers: int = 0
    """Ready instances on the other nodes when it happened."""
    restarted: list[str] = field(default_factory=list)
    """Those of them that got another process, which none may."""

    def may_have_lost(self, one: Asked) -> bool:
        """Whether a request that failed may have failed because of this.

        A node takes what runs on it; the control plane takes every stream through it, and refuses
        connections until it is back.
        """
        back = self.back if self.back is not None else self.at + BACK_SECONDS
        if self.server == "control":
            return one.under_way(self.at) or self.at <= one.began <= back + 1.0
        return one.under_way(self.at) and self.server in one.node_ids


class Killing:
    """Deals blows one after the other, each once the server before is back."""

    def __init__(
        self, cluster: LocalCluster, watching: Watching, now: Callable[[], float], nodes: int
    ) -> None:
        """`now` are the trace's seconds."""
        self.blows: list[Blow] = []
        self._cluster = cluster
        self._watching = watching
        self._now = now
        self._nodes = nodes

    def plan(self) -> list[tuple[str, str]]:
        """Each node in turn, the control plane, and a node stopped past its lease."""
        names = [f"node-{number}" for number in range(1, self._nodes + 1)]
        return [
            *((name, "SIGKILL") for name in names),
            ("control", "SIGKILL"),
            (names[0], "SIGSTOP"),
        ]

    async def run(self, client: sllm.AsyncClient, every: float) -> None:
        """Deals them all, `every` seconds apart if the servers are back by then."""
        for number, (server, kind) in enumerate(self.plan()):
            await asyncio.sleep(max(0.0, (number + 0.5) * every - self._now()))
            await self._deal(client, server, kind)

    async def _deal(self, client: sllm.AsyncClient, server: str, kind: str) -> None:
        blow = Blow(server, kind, self._now())
        self.blows.append(blow)
        elsewhere = {
            key: one.worker_pid
            for key, one in self._watching.instances.items()
            if one.node_id != server and one.state == "READY"
        }
        blow.workers = len(elsewhere)
        process = self._cluster.server(server)
        if kind == "SIGKILL":
            process.kill()
            self._watching.forget(server)
        else:
            await self._stop(process)
        await asyncio.sleep(SETTLE_SECONDS)
        if await self._is_back(client):
            blow.back = self._now()
        now = await client.instances() if blow.back else []
        blow.restarted = [
            one.instance_id
            for one in now
            if one.worker_pid and elsewhere.get(one.instance_id, one.worker_pid) != one.worker_pid
        ]

    async def _stop(self, process: psutil.Process) -> None:
        """Holds a node and its workers still for longer than its lease."""
        held = [process, *process.children(recursive=True)]
        _each(held, psutil.Process.suspend)
        try:
            await asyncio.sleep(2 * LEASE_SECONDS)
        finally:
            _each(reversed(held), psutil.Process.resume)

    async def _is_back(self, client: sllm.AsyncClient) -> bool:
        """Whether all nodes are in the fleet, as soon as they are."""
        with suppress(TimeoutError):
            async with asyncio.timeout(BACK_SECONDS):
                while True:
                    with suppress(sllm.errors.Unavailable):
                        if len(await client.nodes()) == self._nodes:
                            return True
                    await asyncio.sleep(0.1)
        return False


def _each(processes: Iterable[psutil.Process], action: Callable[[psutil.Process], None]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            action(process)


def unexcused(asked: Sequence[Asked], blows: Sequence[Blow]) -> list[Asked]:
    """The requests that failed, and not because of what was done to the server they needed."""
    failed = [one for one in asked if one.error or one.receipt is None]
    return [one for one in failed if not any(blow.may_have_lost(one) for blow in blows)]
