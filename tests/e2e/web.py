"""A real cluster in which every call between two of its parts passes a test's hands."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

import sllm
from tests.e2e.between import Between
from tests.e2e.cluster import START_TIMEOUT, Part
from tests.support import assert_eventually

CALLER = "caller"
LEASE_SECONDS = 1.0
MIGRATION = "/serverlessllm.v1.MigrationService/"
_SPARE_FILES = 6
"""Connections that come and go as gRPC likes."""


@dataclass(slots=True)
class Web:
    """A control plane and nodes, each behind a `Between` of its own for whoever calls it."""

    control: Part
    nodes: dict[str, Part]
    to_node: dict[str, Between]
    """What others say to a node."""
    to_control: dict[str, Between]
    """What each node, and the test's own caller, says to the control plane."""
    client: sllm.AsyncClient
    """Straight to the control plane."""
    caller: sllm.AsyncClient
    """Through `to_control`."""
    _restarts: list[asyncio.Task[None]] = field(default_factory=list)
    _files: dict[tuple[int, int], int] = field(default_factory=dict)
    """Open files when all was idle first, by process and by how much it ran: nodes, instances."""

    def part(self, name: str) -> Part:
        """The control plane, or a node."""
        return self.control if name == "control" else self.nodes[name]

    async def kill(self, name: str) -> None:
        """SIGKILL. A node starts again in the background, and the control plane at once."""
        part = self.part(name)
        await asyncio.to_thread(part.kill)
        restart = asyncio.create_task(asyncio.to_thread(part.restart))
        self._restarts.append(restart)
        if part is self.control:
            await restart

    def cut(self, name: str) -> None:
        """Cuts all that goes from or to one of them."""
        if name == CALLER:
            self.to_control[CALLER].cut()
        elif name == "control":
            for way in self.to_control.values():
                way.cut()
            for way in self.to_node.values():
                way.cut(lambda method: not method.startswith(MIGRATION))
        else:
            self.to_control[name].cut()
            self.to_node[name].cut()
            for other in self.to_node.keys() - {name}:
                self.cut_migration(other)

    def cut_migration(self, name: str) -> None:
        """Cuts what other nodes say to a node, and nothing else."""
        self.to_node[name].cut(lambda method: method.startswith(MIGRATION))

    def mend(self) -> None:
        """All can hear each other again."""
        for way in (*self.to_control.values(), *self.to_node.values()):
            way.mend()

    async def settle(self, instances: int) -> list[sllm.Instance]:
        """Returns once so many instances are ready, all idle, and no others are there."""
        found: list[sllm.Instance] = []

        async def settled() -> bool:
            nonlocal found
            found = await self.client.instances()
            states = [one.state == "READY" and not one.running_requests for one in found]
            return len(found) == instances and all(states)

        await assert_eventually(settled, timeout=START_TIMEOUT)
        return found

    async def nothing_is_left(self) -> None:
        """Returns once no part holds anything of a request."""
        for look in (self._no_slots, self._no_memory, self._no_processes, self._no_files):
            await assert_eventually(look, timeout=40.0)

    async def _no_slots(self) -> bool:
        async for state in self.client.watch():
            return not any(
                one.in_flight or one.instance.running_requests for one in state.instances
            )
        return False

    async def _no_memory(self) -> bool:
        instances = await self.client.instances()
        held = {node.node_id: node.kv_used_bytes for node in await self.client.nodes()}
        known = {
            node_id: sum(one.kv_bytes for one in instances if one.node_id == node_id)
            for node_id in held
        }
        return held == known

    async def _no_processes(self) -> bool:
        """A node's children are its zygote, and a worker for each instance."""
        instances = await self.client.instances()
        there = {node.node_id for node in await self.client.nodes()}
        counts = {
            name: len(part.descendants()) for name, part in self.nodes.items() if name in there
        }
        return counts == {
            name: 1 + sum(one.node_id == name for one in instances) for name in counts
        }

    async def _no_files(self) -> bool:
        """No more are open than when as much was running before."""
        instances = await self.client.instances()
        there = sorted(node.node_id for node in await self.client.nodes())
        counts = {(self.control.process.pid, len(there))}
        for name in there:
            here = sum(one.node_id == name for one in instances)
            counts.add((self.nodes[name].process.pid, here))
        return all(
            _open_files(key[0]) <= self._files.setdefault(key, _open_files(key[0])) + _SPARE_FILES
            for key in counts
        )

    async def close(self) -> None:
        """Ends what was begun in the background."""
        await asyncio.gather(*self._restarts)


def _open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


@asynccontextmanager
async def web_of(directory: Path, nodes: int, engine: str = "transformers") -> AsyncIterator[Web]:
    """Starts all of it; ends it, and checks that no process is left.

    Args:
        directory: of all files.
        nodes: how many.
        engine: that they have; no other, since each has a process of its own.
    """
    async with AsyncExitStack() as stack:
        ask = ["control", "--dir", str(directory / "control"), "--lease", str(LEASE_SECONDS)]
        control = Part("control", directory, ask)
        stack.callback(control.end)
        await asyncio.to_thread(control.wait_until_up)
        names = [f"node-{index}" for index in range(nodes)]
        to_control: dict[str, Between] = {}
        addresses: dict[str, str] = {}
        for name in (*names, CALLER):
            to_control[name] = Between(control.address)
            addresses[name] = await to_control[name].start("127.0.0.1:0")
            stack.push_async_callback(to_control[name].stop)
        starting = (_start_node(directory, name, addresses[name], engine, stack) for name in names)
        parts = dict(zip(names, await asyncio.gather(*starting), strict=True))
        to_node: dict[str, Between] = {}
        for name, part in parts.items():
            to_node[name] = Between(part.address)
            await to_node[name].start(part.address.replace("127.0.0.1", "127.0.0.2"))
            stack.push_async_callback(to_node[name].stop)
        client = await stack.enter_async_context(sllm.AsyncClient(control.address))
        caller = await stack.enter_async_context(sllm.AsyncClient(addresses[CALLER]))
        for part in parts.values():
            await asyncio.to_thread(part.wait_for_zygotes)
        web = Web(control, parts, to_node, to_control, client, caller)
        stack.push_async_callback(_stop, web)
        yield web


async def _start_node(
    directory: Path, name: str, control: str, engine: str, stack: AsyncExitStack
) -> Part:
    """A node that others reach at another address than it serves on."""
    where = ["--control", control, "--dir", str(directory / name), "--advertise", "127.0.0.2"]
    sizes = ["--dram=128MiB", "--ssd=1GiB", "--kv=64MiB", f"--engines={engine}"]
    part = Part(name, directory, ["node", "--id", name, *where, *sizes])
    stack.callback(part.end)
    await asyncio.to_thread(part.wait_until_up)
    return part


async def _stop(web: Web) -> None:
    await web.close()
    left = [child for node in web.nodes.values() for child in node.descendants()]
    for part in (*web.nodes.values(), web.control):
        assert await asyncio.to_thread(part.stop) == 0, part.log_text()[-2000:]
        part.check_log()
    assert not psutil.wait_procs(left, timeout=START_TIMEOUT)[1]
