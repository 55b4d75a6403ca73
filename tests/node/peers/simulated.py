"""A cluster of boards on links of bounded rate, by a clock of its own: no process, no waiting.

Every node, and the source, sends and gets `rate` chunks a second at most, shared fairly between
what is on its way (max-min). What a node tells arrives a little later. All else is the board's.
"""

import heapq
import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from sllm.checkpoint.importing.exchange import Turn
from sllm.node.peers.board import MEETING_SECONDS, Board
from sllm.node.peers.news import News
from sllm.node.tiers.types import Tier

SOURCE: Final = "source"
THREADS: Final = 8
STREAMS: Final = 8
"""Chunks that a node gives at a time."""
TELLING_SECONDS: Final = 0.02
ASKING_SECONDS: Final = 0.01
POLL_SECONDS: Final = 0.25


@dataclass(eq=False)
class Flow:
    """A chunk on its way."""

    giver: str
    taker: str
    turn: Turn
    left: float = 1.0
    rate: float = 0.0


@dataclass(eq=False)
class Node:
    """One that is getting the checkpoint."""

    name: str
    board: Board
    has: set[int] = field(default_factory=set)
    free: int = THREADS
    log: list[News] = field(default_factory=list)
    """All that it has told."""
    followers: list["Node"] = field(default_factory=list)
    done_at: float | None = None


class Simulation:
    """Nodes that begin at times of their own, until all have all."""

    def __init__(self, count: int, rate: float, holders: int = 0) -> None:
        """Of a checkpoint of so many chunks; `holders` nodes have it, or else the source does."""
        self.count = count
        self.now = 0.0
        self.asked: Counter[int] = Counter()
        """How often the source was asked for each chunk."""
        self.of_holders: Counter[int] = Counter()
        self.nodes: dict[str, Node] = {}
        self.rates: dict[str, float] = {}
        """Of links that are slower or faster than others."""
        self._rate = rate
        self._holders = [f"h{number}" for number in range(holders)]
        self._flows: list[Flow] = []
        self._queues: dict[str, deque[Flow]] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def at(self, when: float, what: Callable[[], None]) -> None:
        """Has something happen later."""
        heapq.heappush(self._events, (when, next(self._order), what))

    # --- nodes --------------------------------------------------------------------------------

    def start(self, name: str, written: frozenset[int] = frozenset()) -> None:
        """A node begins, and is told of those that have."""
        node = Node(name, Board(name, self.count, written))
        until, whole = self.now + MEETING_SECONDS, News(Tier.DRAM, whole=True)
        for holder in self._holders:
            node.board.join(holder, fellow=False, awaited_until=until)
            self.at(self.now + TELLING_SECONDS, partial(self._hear, node, holder, whole))
        for other in list(self.nodes.values()):
            node.board.join(other.name, fellow=other.done_at is None, awaited_until=until)
            self.at(self.now + TELLING_SECONDS, partial(self._meet, node, other))
        self.nodes[name] = node
        self.tell(node, News(Tier.REMOTE, begun=tuple(written)))
        self._poll(node)

    def _meet(self, node: Node, other: Node) -> None:
        """A call reaches the other, which calls back; both hear all that there has been."""
        if self.nodes.get(other.name) is not other or self.nodes.get(node.name) is not node:
            return
        if other.done_at is None:
            other.board.join(node.name, fellow=True)
        for one, to in ((other, node), (node, other)):
            one.followers.append(to)
            said = one.log or [News(Tier.REMOTE)]
            later = self.now + TELLING_SECONDS
            self.at(later, partial(self._hear, to, one.name, *said))
        self._wake(other)

    def kill(self, name: str) -> None:
        """A node is gone, and all that it gives and gets."""
        del self.nodes[name]
        for queue in self._queues.values():
            for flow in [one for one in queue if one.taker == name]:
                queue.remove(flow)
        broken = [one for one in self._flows if name in (one.giver, one.taker)]
        waiting = self._queues.pop(name, deque())
        self._flows = [one for one in self._flows if one not in broken]
        for node in self.nodes.values():
            self.at(self.now + TELLING_SECONDS, partial(self._leave, node, name))
        for flow in (*broken, *waiting):
            if flow.taker in self.nodes:
                self._fail(flow)
            elif flow.giver != SOURCE:
                self._next_of(flow.giver)
        self._share()

    def part(self, name: str, other: str) -> None:
        """A node hears nothing of another any more, and does without it; that one hears it yet."""
        node, silent = self.nodes[name], self.nodes[other]
        if node in silent.followers:
            silent.followers.remove(node)  # nor what is on its way
        self._leave(node, other)

    def _leave(self, node: Node, name: str) -> None:
        node.board.leave(name)
        self._wake(node)

    def _fail(self, flow: Flow) -> None:
        node = self.nodes[flow.taker]
        node.free += 1
        node.board.leave(flow.giver)
        node.board.failed(flow.turn)
        self._wake(node)

    def tell(self, node: Node, news: News) -> None:
        """All others hear it, a little later."""
        node.log.append(news)
        for other in node.followers:
            later = self.now + TELLING_SECONDS
            self.at(later, partial(self._hear, other, node.name, news))

    def _hear(self, node: Node, name: str, *said: News) -> None:
        if self.nodes.get(node.name) is not node or (name not in self.nodes and name[0] != "h"):
            return
        if name in self.nodes and node not in self.nodes[name].followers:
            return
        for news in said:
            node.board.told(name, news, self.now)
        if said[-1].asks == node.name and (left := node.board.leave_to(name)):
            self.tell(node, News(Tier.REMOTE, left=dict.fromkeys(left, name)))
        self._wake(node)

    def _poll(self, node: Node) -> None:
        if self.nodes.get(node.name) is node and node.done_at is None:
            self._wake(node)
            self.at(self.now + POLL_SECONDS, partial(self._poll, node))

    def _wake(self, node: Node) -> None:
        while node.free and node.done_at is None:
            turn = node.board.take(self.now)
            if turn is None:
                if asks := node.board.to_ask(self.now):
                    self.tell(node, News(Tier.REMOTE, asks=asks))
                return
            self._begin(node, turn)

    def _begin(self, node: Node, turn: Turn) -> None:
        node.free -= 1
        if node.board.is_for_all(turn):
            self.tell(node, News(Tier.REMOTE, begun=(turn.chunk,)))
            (self.of_holders if turn.giver else self.asked)[turn.chunk] += 1
        flow = Flow(turn.giver or SOURCE, node.name, turn)
        self.at(self.now + ASKING_SECONDS, partial(self._ask, flow))

    # --- links --------------------------------------------------------------------------------

    def _ask(self, flow: Flow) -> None:
        if flow.taker not in self.nodes:
            return
        if flow.giver not in (SOURCE, *self._holders, *self.nodes):
            self._fail(flow)
            return
        giving = sum(one.giver == flow.giver for one in self._flows)
        if flow.giver != SOURCE and giving >= STREAMS:
            self._queues.setdefault(flow.giver, deque()).append(flow)
            return
        self._flows.append(flow)
        self._share()

    def _next_of(self, giver: str) -> None:
        if queue := self._queues.get(giver):
            self._flows.append(queue.popleft())

    def _land(self, flow: Flow) -> None:
        self._flows.remove(flow)
        self._next_of(flow.giver)
        self._share()
        node = self.nodes[flow.taker]
        node.free += 1
        node.board.done(flow.turn, self.now)
        node.has.add(flow.turn.chunk)
        whole = len(node.has) == self.count
        node.done_at = self.now if whole else None
        self.tell(node, News(Tier.REMOTE, whole=whole, arrived={flow.turn.chunk: ""}))
        self._wake(node)

    def _share(self) -> None:
        """Max-min fair rates: the tightest link is shared first, and then what others leave."""
        left: dict[tuple[str, bool], float] = {}
        on: dict[tuple[str, bool], set[Flow]] = {}
        for flow in self._flows:
            for link in ((flow.giver, True), (flow.taker, False)):
                left[link] = self.rates.get(link[0], self._rate)
                on.setdefault(link, set()).add(flow)
        while on:
            tightest = min(on, key=lambda link: left[link] / len(on[link]))
            share = left[tightest] / len(on[tightest])
            for flow in list(on[tightest]):
                flow.rate = share
                for link in ((flow.giver, True), (flow.taker, False)):
                    left[link] -= share
                    on[link].discard(flow)
            on = {link: flows for link, flows in on.items() if flows}

    # --- time ---------------------------------------------------------------------------------

    def run(self, until: float = 3600.0) -> None:
        """Has all happen, until all nodes have all."""
        while any(one.done_at is None for one in self.nodes.values()):
            landing = min(self._flows, key=lambda one: one.left / one.rate, default=None)
            lands = self.now + landing.left / landing.rate if landing else until
            event = self._events[0][0] if self._events else until
            moment = min(lands, event)
            if moment >= until:
                raise AssertionError(f"not done after {until} s: {self.lacking()}")
            for flow in self._flows:
                flow.left -= (moment - self.now) * flow.rate
            self.now = moment
            if landing and lands <= event:
                self._land(landing)
            else:
                heapq.heappop(self._events)[2]()

    def lacking(self) -> dict[str, Iterable[int]]:
        """What nodes have not got."""
        everything = set(range(self.count))
        return {one.name: sorted(everything - one.has) for one in self.nodes.values()}
