"""Stands for election whenever nobody leads, and leads for as long as its lease surely lasts."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, ParamSpec, TypeAlias, TypeVar

import structlog

from sllm import errors
from sllm.clock import Clock
from sllm.control.election.ballot import Ballot, Leader, Won
from sllm.control.election.leadership import Leadership

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

log = structlog.get_logger()

LOOK_SECONDS: Final = 0.2
"""Between two looks at who leads."""
_KEEPS_PER_LEASE: Final = 6
_KEEP_SECONDS: Final = 1.0
"""Longest time that one try to keep the lease may take."""
_MARGIN: Final = 0.1
"""Part of a lease by which it is given up early: clocks may run that much faster than etcd's."""

Lead: TypeAlias = Callable[[Leadership], Awaitable[None]]
"""Leads until the leadership has ended, or is cancelled; returns once nothing is left of it."""
LeaderSeen: TypeAlias = Callable[[Leader | None], None]
"""Is told whenever somebody else leads, or nobody."""


class Elector:
    """One control plane's part in the election. Belongs to the event loop."""

    def __init__(
        self, ballot: Ballot, lease_seconds: int, clock: Clock, lead: Lead, seen: LeaderSeen
    ) -> None:
        """`clock` goes on while the machine sleeps; `lead` and `seen` act on what comes out."""
        self._ballot = ballot
        self._lease_seconds = lease_seconds
        self._clock = clock
        self._lead = lead
        self._tell = seen
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="election")
        self._seen: Leader | None = None
        self._above = 0
        """A term that nodes have heard of."""
        self._cut_off = False

    async def run(self) -> None:
        """Takes part until it is cancelled, or `lead` fails."""
        try:
            while True:
                if won := await self._turn():
                    await self._serve(*won)
                await self._clock.sleep(LOOK_SECONDS)
        finally:
            self._threads.shutdown(wait=False)

    # --- following ----------------------------------------------------------------------------

    async def _turn(self) -> tuple[Won, float] | None:
        """Looks who leads; an election that was won, and since when its lease counts."""
        try:
            leader = await self._blocking(self._ballot.look)
            began = self._clock.now()
            won = None if leader else await self._blocking(self._ballot.stand, self._above)
        except errors.StateUnavailable as error:
            self._told_of_etcd(error)
            return None
        self._told_of_etcd(None)
        self._see(won.leader if won else leader)
        return (won, began) if won else None

    def _see(self, leader: Leader | None) -> None:
        if leader != self._seen:
            self._seen = leader
            log.info("control.leader", address=leader.address if leader else None)
            self._tell(leader)

    def _told_of_etcd(self, problem: errors.SllmError | None) -> None:
        """Logs when etcd begins to be out of reach. Who led last is asked on meanwhile."""
        if problem and not self._cut_off:
            log.warning("control.etcd_unavailable", problem=problem.message)
        self._cut_off = problem is not None

    # --- leading ------------------------------------------------------------------------------

    async def _serve(self, won: Won, began: float) -> None:
        until = began + self._sure(self._lease_seconds)
        leadership = Leadership(won.leader.term, won.since, until, self._clock)
        log.info("control.leads", term=leadership.number)
        leading = asyncio.ensure_future(self._lead(leadership))
        keeping = asyncio.create_task(self._keep(leadership, won.lease), name="keeping the lease")
        try:
            await asyncio.wait([leading, keeping], return_when=asyncio.FIRST_COMPLETED)
        finally:
            leadership.give_up()
            keeping.cancel()
            log.info("control.leads_no_more", term=leadership.number)
            self._above = max(self._above, leadership.later_term)
            await self._leave(leading, won.lease)

    async def _leave(self, leading: asyncio.Future[None], lease: int) -> None:
        """Lets others lead at once, and waits for the end of what belongs to the leadership."""
        resigning = asyncio.ensure_future(self._blocking(self._ballot.resign, lease))
        try:
            await leading
        except (errors.StateUnavailable, errors.NotLeader) as error:
            log.warning("control.cannot_lead", problem=error.message)
        except asyncio.CancelledError:
            leading.cancel()
            await asyncio.gather(leading, return_exceptions=True)
            raise
        finally:
            await asyncio.gather(resigning, return_exceptions=True)
            self._see(None)

    async def _keep(self, leadership: Leadership, lease: int) -> None:
        """Has the lease last, until it cannot or the leadership is given up."""
        while (left := leadership.seconds_left) > 0:
            pause = min(left, self._lease_seconds / _KEEPS_PER_LEASE)
            try:
                await asyncio.wait_for(leadership.ended.wait(), pause)
            except TimeoutError:
                if not await self._kept(leadership, lease):
                    return

    async def _kept(self, leadership: Leadership, lease: int) -> bool:
        """Whether the lease may still last."""
        began = self._clock.now()
        timeout = min(_KEEP_SECONDS, leadership.seconds_left)
        if timeout <= 0:
            return False
        try:
            seconds = await self._blocking(self._ballot.keep, lease, timeout)
        except errors.StateUnavailable as error:
            log.warning("control.lease_not_kept", problem=error.message)
            return True
        leadership.extend(began + self._sure(seconds))
        return seconds > 0

    def _sure(self, seconds: float) -> float:
        """For how much of a lease that was asked for at a moment nobody else can lead."""
        return seconds * (1 - _MARGIN)

    async def _blocking(
        self, work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: work(*args, **kwargs))
