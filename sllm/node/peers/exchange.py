"""One import's chunks, shared with other nodes: had from them, and told to them as they arrive."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from threading import Condition, Event, Thread
from typing import Final

import xxhash

from sllm.checkpoint.format.manifest import Manifest
from sllm.checkpoint.importing.exchange import Contents, Turn
from sllm.checkpoint.importing.import_plan import ImportPlan
from sllm.checkpoint.importing.journal import ChunkKey
from sllm.clock import Clock
from sllm.node.peers.arrivals import Arrivals
from sllm.node.peers.board import MEETING_SECONDS, Board
from sllm.node.peers.contacts import Contacts
from sllm.node.peers.digests import Digests
from sllm.node.peers.flights import Flight, Flights
from sllm.node.peers.link import Link
from sllm.node.peers.news import News
from sllm.node.peers.types import Network, Peer, Peers
from sllm.node.tiers.checkpoints import SourceRecord

_WATCH_SECONDS: Final = 0.25
_MANIFEST_SECONDS: Final = 2.0
"""How long nodes are waited for that may know what a checkpoint consists of."""


class Exchange:
    """See `sllm.checkpoint.importing.exchange.Exchange`.

    The import's threads take turns; nodes tell what they have in threads of their own; whoever
    gives chunks on asks what has arrived. One lock guards all of it.
    """

    def __init__(
        self,
        record: SourceRecord,
        plan: ImportPlan,
        chunk_bytes: int,
        network: Network,
        clock: Clock,
    ) -> None:
        """Of the import of a source in chunks of this size, before it begins."""
        self.fetched_bytes = 0
        """Of what other nodes have given."""
        self._own = network.node_id
        self._clock = clock
        self._changed = Condition()
        self._digests = Digests(plan, chunk_bytes)
        self.arrivals = Arrivals(self._digests.layout)
        """What has come, for those who have chunks from here."""
        self._contacts = Contacts(record, network, clock, self._changed, self._told, self._left)
        self._awaited: dict[str, float] = {}
        """Until when those are waited for that are to share the work; for ever ago: they called."""
        self._written: frozenset[int] = frozenset()
        """Chunks of which an earlier process has noted what they are."""
        self._current: dict[int, Turn] = {}
        """By chunk: the turn that has taken the place of one that broke off."""
        self._flights = Flights()
        self._news: dict[str, list[News]] = {}
        """What nodes have told before the import began."""
        self._board: Board | None = None
        self._closing = Event()
        self._watching = Thread(target=self._watch, name="peer-watch", daemon=True)
        self._watching.start()

    # --- other nodes --------------------------------------------------------------------------

    def add(self, peers: Peers) -> None:
        """Has chunks come from these nodes as well. In any thread."""
        with self._changed:
            self._digests.digest = self._digests.digest or peers.digest
            for peer in peers.peers:
                self._meet(peer, self._clock.now() + MEETING_SECONDS)
            self._changed.notify_all()

    def meet(self, peer: Peer) -> None:
        """Takes in a node that has made itself known. In any thread."""
        with self._changed:
            self._meet(peer, -math.inf)

    def _meet(self, peer: Peer, awaited_until: float) -> None:
        if self._follow(peer):
            self._awaited.setdefault(peer.node_id, awaited_until)
            if self._board is not None:
                self._join(self._board, peer, awaited_until)

    def _follow(self, peer: Peer) -> bool:
        if self._closing.is_set():
            return False
        return self._contacts.meet(peer, wants_manifest=self._digests.manifest is None)

    def _join(self, board: Board, peer: Peer, awaited_until: float = -math.inf) -> None:
        board.join(peer.node_id, fellow=peer.fellow, awaited_until=awaited_until)

    def _told(self, link: Link, news: News) -> None:
        # Before the lock, which event loops take as well: a large manifest takes a second to read.
        problem = self._digests.learn(link.peer.node_id, news)
        with self._changed:
            if not self._contacts.has(link):
                return
            if problem:
                self._contacts.refuse(link, problem)
                return
            if self._board is None:
                self._news.setdefault(link.peer.node_id, []).append(replace(news, manifest=b""))
            else:
                self._pass_on(self._board, link.peer, news)
            self._changed.notify_all()

    def _pass_on(self, board: Board, peer: Peer, news: News) -> None:
        self._join(board, peer)
        board.told(peer.node_id, news, self._clock.now())
        # One that has all tells by its manifest.
        told = range(self._digests.count) if news.whole else news.arrived
        for chunk in filter(self._digests.is_disputed, told):
            board.dispute(chunk)
        if news.asks == self._own and (chunks := board.leave_to(peer.node_id)):
            self.arrivals.leave(chunks, peer.node_id)

    def _left(self, name: str) -> None:
        self._awaited.pop(name, None)
        self._news.pop(name, None)
        if self._board is not None:
            self._board.leave(name)
        self._flights.call_back(name)

    # --- for the import -----------------------------------------------------------------------

    def learn_digests(self) -> None:
        """Waits a little for a node that knows what the checkpoint consists of."""
        with self._changed:
            self._changed.wait_for(
                lambda: self.manifest or not self._contacts.links or self._closing.is_set(),
                _MANIFEST_SECONDS if self._digests.digest else 0.0,
            )

    @property
    def expected(self) -> Mapping[ChunkKey, str]:
        """See `Exchange.expected`."""
        return self._digests.proven

    @property
    def manifest(self) -> Manifest | None:
        """What the checkpoint consists of, where that is known before it has come."""
        return self._digests.manifest

    def begin(self, contents: Contents) -> None:
        """See `Exchange.begin`."""
        written = [
            number
            for number, chunk in enumerate(contents.chunks)
            if (chunk.partition, chunk.index) in contents.written
        ]
        self._written = frozenset(written)
        self.arrivals.begin(contents, written)
        with self._changed:
            self._board = board = Board(self._own, len(contents.chunks), written)
            for name, link in self._contacts.links.items():
                if name in self._awaited:
                    self._join(board, link.peer, self._awaited[name])
                for news in self._news.pop(name, ()):
                    self._pass_on(board, link.peer, news)

    def take(self, check: Callable[[], object]) -> Turn:
        """See `Exchange.take`."""
        while True:
            check()
            with self._changed:
                board, now = self._begun, self._clock.now()
                turn = board.take(now)
                if turn is not None:
                    if board.is_for_all(turn):
                        self.arrivals.began(turn.chunk)
                    return turn
                self._flights.overtake(self._rates, now)
                if asked := board.to_ask(now):
                    self.arrivals.ask(asked)
                self._changed.wait(_WATCH_SECONDS)

    @property
    def _begun(self) -> Board:
        assert self._board, "the import has not begun"
        return self._board

    def _rates(self, chunk: int, giver: str) -> Iterator[float]:
        """How fast nodes give that have nothing to do, and a chunk that is had from another one.

        What a fellow gives is not had from a holder after all: that gives it once for all of them.
        """
        links, givers = self._contacts.links, self._begun.givers
        fellows = {one.name for one in givers if one.fellow}
        for one in givers:
            is_able = not one.in_flight and one.name in links and one.gives(chunk)
            if is_able and (one.fellow or giver not in fellows):
                yield links[one.name].rate

    def fetch(self, turn: Turn, memory: memoryview, check: Callable[[], object]) -> str | None:
        """See `Exchange.fetch`.

        Where a node breaks off, the rest of the chunk comes from another one.
        """
        flight, givers = self._launch(turn, len(memory), got=0), set[str]()
        while flight is not None:
            link, way = flight
            before = way.got
            givers.add(link.peer.node_id)
            try:
                whole = link.fetch(way, memory, check)
            finally:
                self._land(way, way.got - before)
            if whole:
                return self._checked(turn, memory, givers)
            flight = self._go_on(turn, link, way)
        return None

    def _launch(self, turn: Turn, size: int, got: int) -> tuple[Link, Flight] | None:
        with self._changed:
            link = self._contacts.links.get(turn.giver or "")
            if link is None:
                return None
            flight = Flight(turn.chunk, size, got, self._clock.now())
            self._flights.launch(flight, link.peer.node_id)
            return link, flight

    def _land(self, flight: Flight, size: int) -> None:
        with self._changed:
            self._flights.land(flight)
            self.fetched_bytes += size

    def _go_on(self, turn: Turn, link: Link, way: Flight) -> tuple[Link, Flight] | None:
        """Another node's way with the rest of a chunk, after one has broken off."""
        with self._changed:
            if not way.called_back:
                self._contacts.lose(link)
            other = self._begun.instead(self._current.get(turn.chunk, turn))
            if other is None:
                return None
            self._current[turn.chunk] = other
        return self._launch(other, way.size, way.got)

    def _checked(self, turn: Turn, memory: memoryview, givers: set[str]) -> str | None:
        """The digest of a chunk that is what it must be; who has given another is refused."""
        digest = xxhash.xxh3_128_hexdigest(memory)
        if digest == self._digests.of(turn.chunk):
            return digest
        if self._digests.is_disputed(turn.chunk):
            # It may be what it should. Manifests tell of chunks before their nodes have them.
            with self._changed:
                self._begun.dispute(turn.chunk)
            return None
        with self._changed:
            for name in givers:
                link = self._contacts.links.get(name)
                if link and len(givers) == 1:
                    self._contacts.refuse(link, f"chunk {turn.chunk} is not what it must be")
                else:
                    self._contacts.doubt(name)
        return None

    def arrived(self, turn: Turn, digest: str) -> None:
        """See `Exchange.arrived`."""
        with self._changed:
            current = self._current.pop(turn.chunk, turn)
            self._begun.done(current, self._clock.now())
            self._contacts.came_from(current.giver)
            if turn.chunk in self._written:
                self._digests.took(turn.chunk, digest, self._own)
            elif turn.giver is not None:
                self._digests.took(turn.chunk, digest)
            else:
                self._judge(turn.chunk, digest)
            self._changed.notify_all()
        self.arrivals.add(turn.chunk, digest)

    @property
    def doubted(self) -> Collection[int]:
        """See `Exchange.doubted`."""
        return self._digests.doubted

    def corrected(self, chunk: int, digest: str) -> None:
        """See `Exchange.corrected`."""
        with self._changed:
            self._judge(chunk, digest)
            self._changed.notify_all()
        self.arrivals.add(chunk, digest)

    def _judge(self, chunk: int, digest: str) -> None:
        """Has nothing more come from those that have said of a chunk what the source does not."""
        for name in self._digests.read(chunk, digest):
            self._contacts.refuse_named(name, f"chunk {chunk} is not what it has said")

    def failed(self, turn: Turn) -> None:
        """See `Exchange.failed`."""
        with self._changed:
            self._begun.failed(self._current.pop(turn.chunk, turn))
            self._changed.notify_all()

    # --- the end ------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Does without nodes that have fallen silent, or give nothing."""
        while not self._closing.wait(_WATCH_SECONDS):
            with self._changed:
                for name, pretends in list(self._flights.failing(self._clock.now())):
                    self._do_without(name, pretends=pretends)
                for peer in self._contacts.tidy():
                    self._follow(peer)
                dropped = self._contacts.take_dropped()
            for link in dropped:
                link.close()

    def _do_without(self, name: str, *, pretends: bool) -> None:
        link = self._contacts.links.get(name)
        if link and pretends:
            self._contacts.refuse(link, "it says that it gives a chunk, and does not")
        elif link:
            self._contacts.lose(link)

    def close(self) -> None:
        """Ends all that is under way, and gives nothing more. No turn may be under way."""
        self._closing.set()
        with self._changed:
            self._contacts.drop_all()
            dropped = self._contacts.take_dropped()
        self.arrivals.close()
        for link in dropped:
            link.close()
        self._watching.join()
