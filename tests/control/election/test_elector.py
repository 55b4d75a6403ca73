"""Of several control planes one leads, each in a later term, on a real etcd."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing

import pytest

from sllm import errors
from sllm.clock import SleeplessClock
from sllm.control.config import EtcdConfig
from sllm.control.election.ballot import Ballot, Leader
from sllm.control.election.elector import Elector
from sllm.control.election.leadership import Leadership
from sllm.control.etcd.client import Etcd
from tests.etcd import EtcdServer, running_etcd
from tests.support import assert_eventually

LEASE = 2


class Candidate:
    """One control plane's elector, and what comes of it."""

    def __init__(self, etcd: Etcd, name: str) -> None:
        self.name = name
        self.leaderships: list[Leadership] = []
        self.seen: list[str | None] = []
        self.fails: Exception | None = None
        ballot = Ballot(etcd, name, f"{name}:1", LEASE)
        self.elector = Elector(ballot, LEASE, SleeplessClock(), self._lead, self._see)

    @property
    def leads(self) -> bool:
        return bool(self.leaderships) and self.leaderships[-1].seconds_left > 0

    def _see(self, leader: Leader | None) -> None:
        self.seen.append(leader.holder if leader else None)

    async def _lead(self, leadership: Leadership) -> None:
        self.leaderships.append(leadership)
        if self.fails:
            raise self.fails
        await leadership.ended.wait()


@asynccontextmanager
async def running(config: EtcdConfig, *names: str) -> AsyncIterator[dict[str, Candidate]]:
    async with AsyncExitStack() as stack:
        candidates: dict[str, Candidate] = {}
        for name in names:
            etcd = stack.enter_context(closing(Etcd(config)))
            candidate = candidates[name] = Candidate(etcd, name)
            task = asyncio.create_task(candidate.elector.run())
            stack.push_async_callback(_end, task)
        yield candidates


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def config(etcd_server: EtcdServer) -> EtcdConfig:
    return etcd_server.config()


@pytest.fixture
def etcd(config: EtcdConfig) -> Iterator[Etcd]:
    with closing(Etcd(config)) as etcd:
        yield etcd


async def one_that_leads(candidates: dict[str, Candidate]) -> Candidate:
    def one() -> bool:
        return sum(one.leads for one in candidates.values()) == 1

    await assert_eventually(one)
    return next(one for one in candidates.values() if one.leads)


async def test_one_leads_and_all_know_which(config: EtcdConfig) -> None:
    async with running(config, "a", "b", "c") as candidates:
        leader = await one_that_leads(candidates)
        await assert_eventually(
            lambda: all(one.seen[-1:] == [leader.name] for one in candidates.values())
        )
        assert leader.leaderships[0].number == 1


async def test_who_gives_up_is_followed_in_a_later_term(config: EtcdConfig) -> None:
    async with running(config, "a", "b") as candidates:
        first = await one_that_leads(candidates)
        first.leaderships[-1].give_up()
        second = await one_that_leads(candidates)
        assert second.leaderships[-1].number == 2
        await assert_eventually(
            lambda: all(one.seen[-1:] == [second.name] for one in candidates.values())
        )


async def test_a_term_that_nodes_have_heard_of_is_left_behind(config: EtcdConfig) -> None:
    """etcd may have been restored from a copy of earlier days."""
    async with running(config, "a") as candidates:
        leader = await one_that_leads(candidates)
        leader.leaderships[-1].refused(errors.StaleTerm("late", metadata={"term": "41"}))
        await assert_eventually(lambda: len(leader.leaderships) == 2)
        assert leader.leaderships[-1].number == 42


async def test_who_cannot_lead_lets_others(config: EtcdConfig) -> None:
    async with running(config, "a") as candidates:
        leader = await one_that_leads(candidates)
        leader.fails = errors.StateUnavailable("nothing can be read")
        leader.leaderships[-1].give_up()
        await assert_eventually(lambda: len(leader.leaderships) > 3)
        leader.fails = None
        await one_that_leads(candidates)


async def test_a_fault_of_who_leads_ends_its_part(config: EtcdConfig) -> None:
    with closing(Etcd(config)) as etcd:
        candidate = Candidate(etcd, "a")
        candidate.fails = ZeroDivisionError()
        with pytest.raises(ZeroDivisionError):
            await candidate.elector.run()
        assert await asyncio.to_thread(Ballot(etcd, "b", "b:1", LEASE).look) is None, "it holds on"


async def test_a_leader_without_etcd_gives_no_order_when_another_may_lead() -> None:
    """The lease is over for etcd only later, whenever that goes on."""
    with running_etcd() as server:
        config = server.config()
        async with running(config, "a", "b") as candidates:
            first = await one_that_leads(candidates)
            leadership = first.leaderships[-1]
            server.pause()
            await assert_eventually(leadership.ended.is_set)
            with pytest.raises(errors.NotLeader):
                leadership.term()
            server.go_on()
            second = await one_that_leads(candidates)
            assert second.leaderships[-1].number > leadership.number


def test_an_election_is_won_once(config: EtcdConfig, etcd: Etcd) -> None:
    first = Ballot(etcd, "a", "a:1", LEASE).stand(above=0)
    assert first is not None
    assert Ballot(etcd, "b", "b:1", LEASE).stand(above=0) is None
    ballot = Ballot(etcd, "a", "a:1", LEASE)
    assert ballot.keep(first.lease, 1.0) == LEASE
    ballot.resign(first.lease)
    ballot.resign(first.lease)
    assert ballot.keep(first.lease, 1.0) == 0
    second = Ballot(etcd, "b", "b:1", LEASE).stand(above=0)
    assert second is not None
    assert (second.leader.term, second.since > first.since) == (2, True)
