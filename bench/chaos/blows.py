"""One deployment under load, and blows to all that is not a node."""

import asyncio
import random
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import sllm
from bench.chaos.planes import NODES, Planes
from bench.chaos.servers import START_SECONDS, Server
from bench.soak import KINDS, LATE, MODEL, TOKENS, Tally
from sllm import errors

DEPLOYMENTS: Final = 20
"""Beside the one that is asked for."""
PAUSE_SECONDS: Final = (3.0, 6.0)
"""Between two blows."""
DOWN_SECONDS: Final = (0.2, 3.0)
"""Until what was killed is started again."""
STILL_SECONDS: Final = (1.0, 9.0)
"""For which something stands still, or is cut off: shorter and longer than a lease."""


@dataclass
class Chaos:
    """One deployment under load, and blows to all that is not a node."""

    planes: Planes
    client: sllm.AsyncClient
    random: random.Random
    only: str = ""
    """The one kind of blow that there is. Empty: all are."""
    tally: Tally = field(default_factory=Tally)
    without: list[float] = field(default_factory=list)
    """Seconds from each leader's end until another one has all nodes."""

    async def run(self, callers: int, seconds: float) -> None:
        """Learns what is to be expected, and then asks for it under blows."""
        await self._all_nodes()
        for number in range(DEPLOYMENTS):
            await self.client.deploy(f"kept-{number}", f"file://{MODEL}")
        await self.client.deploy("soak", f"file://{MODEL}", max_replicas=NODES, keep_alive=600.0)
        expected = [await self._ask(kind).result() for kind in range(KINDS)]
        until = time.monotonic() + seconds
        asking = [asyncio.create_task(self._caller(expected, until)) for _ in range(callers)]
        await self._blows(until)
        done, late = await asyncio.wait(asking, timeout=2 * START_SECONDS)
        self.tally.errors[LATE] += len(late)
        for task in late:
            task.cancel()
        for task in done:
            task.result()
        await self._all_nodes()
        names = {one.name for one in await self.client.deployments()}
        self.tally.left = DEPLOYMENTS + 1 - len(names)

    async def _all_nodes(self) -> float:
        """Returns once whoever leads has all nodes, after how many seconds."""
        began = time.monotonic()
        while time.monotonic() - began < 2 * START_SECONDS:
            try:
                if len(await self.client.nodes()) == NODES:
                    break
            except errors.Unavailable:
                pass  # nobody leads
            await asyncio.sleep(0.02)
        return time.monotonic() - began

    def _ask(self, kind: int) -> sllm.AsyncStream:
        return self.client.generate(
            "soak",
            f"Number {kind} of many",
            max_tokens=TOKENS,
            ignore_eos=True,
            seed=kind,
            temperature=0.0 if kind % 2 else 0.8,
        )

    async def _caller(self, expected: Sequence[sllm.Result], until: float) -> None:
        while time.monotonic() < until:
            kind = self.random.randrange(KINDS)
            try:
                result = await self._ask(kind).result()
            except errors.SllmError as error:
                self.tally.errors[f"{error.reason}: {error.message}"[:90]] += 1
            else:
                self.tally.compare(result, expected[kind])

    # --- blows --------------------------------------------------------------------------------

    async def _blows(self, until: float) -> None:
        blows: list[Callable[[], Awaitable[None]]] = [
            self._kill_leader,
            self._kill_leader,
            self._leader_leaves,
            self._leader_stands_still,
            self._kill_follower,
            self._kill_member,
            self._member_stands_still,
        ]
        if self.planes.network.cuts:
            blows += [
                self._leader_is_cut_off,
                self._leader_is_cut_off_from_etcd,
                self._follower_is_cut_off,
                self._member_is_cut_off,
            ]
        named = {one.__name__.strip("_"): one for one in blows}
        blows = [named[self.only]] if self.only else blows
        while time.monotonic() < until:
            blow = self.random.choice(blows)
            await blow()
            self.tally.blows[blow.__name__.strip("_")] += 1
            await asyncio.sleep(self.random.uniform(*PAUSE_SECONDS))

    async def _kill_leader(self) -> None:
        await self._end_leader(signal.SIGKILL)

    async def _leader_leaves(self) -> None:
        await self._end_leader(signal.SIGTERM)

    async def _end_leader(self, number: signal.Signals) -> None:
        leader = await self._leader()
        await asyncio.to_thread(leader.end, number)
        self.without.append(await self._all_nodes())
        await self._down()
        leader.start()

    async def _leader_stands_still(self) -> None:
        await self._stand_still(await self._leader())

    async def _kill_follower(self) -> None:
        await self._kill(await self._follower())

    async def _leader_is_cut_off(self) -> None:
        await self._cut_off(await self._leader())

    async def _leader_is_cut_off_from_etcd(self) -> None:
        place = self.planes.place(await self._leader())
        members = [self.planes.place(one) for one in self.planes.members]
        await asyncio.to_thread(self.planes.network.part, place, members)
        await self._heal(place)

    async def _follower_is_cut_off(self) -> None:
        await self._cut_off(await self._follower())

    async def _member_is_cut_off(self) -> None:
        await self._cut_off(self.random.choice(self.planes.members))

    async def _cut_off(self, server: Server) -> None:
        place = self.planes.place(server)
        await asyncio.to_thread(self.planes.network.cut, place)
        await self._heal(place)

    async def _heal(self, place: int) -> None:
        await asyncio.sleep(self.random.uniform(*STILL_SECONDS))
        await asyncio.to_thread(self.planes.network.heal, place)

    async def _kill_member(self) -> None:
        await self._kill(self.random.choice(self.planes.members))

    async def _member_stands_still(self) -> None:
        await self._stand_still(self.random.choice(self.planes.members))

    async def _kill(self, server: Server) -> None:
        await asyncio.to_thread(server.end, signal.SIGKILL)
        await self._down()
        server.start()

    async def _stand_still(self, server: Server) -> None:
        server.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(self.random.uniform(*STILL_SECONDS))
        server.process.send_signal(signal.SIGCONT)

    async def _down(self) -> None:
        await asyncio.sleep(self.random.uniform(*DOWN_SECONDS))

    async def _follower(self) -> Server:
        leader = await self._leader()
        others = [one for one in self.planes.controls.values() if one is not leader]
        return self.random.choice(others)

    async def _leader(self) -> Server:
        while True:
            try:
                if leader := await asyncio.to_thread(self.planes.leader):
                    return leader
            except errors.StateUnavailable:
                pass  # its members elect one of them
            await asyncio.sleep(0.1)
