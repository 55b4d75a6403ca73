"""The other nodes that an import follows: met, tried again, and done without."""

from collections import Counter
from collections.abc import Callable, Mapping
from threading import Condition
from typing import Final

import structlog

from sllm.clock import Clock
from sllm.node.peers.link import Link
from sllm.node.peers.news import News
from sllm.node.peers.types import Network, Peer
from sllm.node.tiers.checkpoints import SourceRecord

_log = structlog.get_logger()

MOST: Final = 32
"""Nodes that are followed at a time: the plan names half as many."""
_SILENCE_SECONDS: Final = 3.0
"""A node that says nothing for so long is done without."""
_AGAIN_SECONDS: Final = 0.5
_TRIES: Final = 20
"""How often one is asked again that has said nothing yet."""
_RETURNS: Final = 2
"""How often in a row one is asked again that has fallen silent, or has broken off: a moment without
an answer must not have all that it holds come from the source."""
_DOUBTS: Final = 2
"""How often a node may have had a part in a chunk that was not what it must be."""


class Contacts:
    """Who is followed. `lock` guards it, which callers hold; links hear in threads of their own."""

    def __init__(
        self,
        record: SourceRecord,
        network: Network,
        clock: Clock,
        lock: Condition,
        told: Callable[[Link, News], None],
        left: Callable[[str], None],
    ) -> None:
        """Begins with nobody.

        Args:
            record: the checkpoint's source.
            network: leads to them.
            clock: tells for how long one has been silent.
            lock: guards this and all that is its owner's.
            told: called with what one says, in a thread and without the lock.
            left: called with the name of one that is done without, under the lock.
        """
        self._record = record
        self._network = network
        self._clock = clock
        self._lock = lock
        self._told = told
        self._left = left
        self._links: dict[str, Link] = {}
        self._refused: set[str] = set()
        """Nodes that have given what was wrong, or nothing."""
        self._doubts: Counter[str] = Counter()
        self._tries: Counter[Peer] = Counter()
        self._returns: Counter[Peer] = Counter()
        self._again: dict[Peer, float] = {}
        """Those that had not begun, and when they are asked again."""
        self._dropped: list[Link] = []
        """To be closed without the lock."""

    @property
    def links(self) -> Mapping[str, Link]:
        """To those that are followed, by name."""
        return self._links

    def has(self, link: Link) -> bool:
        """Whether a link is still in use."""
        return self._links.get(link.peer.node_id) is link

    def meet(self, peer: Peer, *, wants_manifest: bool) -> bool:
        """Follows a node, unless it is of no use; whether it is followed."""
        name = peer.node_id
        if name in self._links:
            return True
        if name == self._network.node_id or name in self._refused or len(self._links) >= MOST:
            return False
        link = self._links[name] = Link(peer, self._record, self._network, self._clock.now)
        link.follow(
            lambda news: self._told(link, news),
            lambda: self._lost(link),
            wants_manifest=wants_manifest,
        )
        return True

    def _lost(self, link: Link) -> None:
        with self._lock:
            self.lose(link)

    def lose(self, link: Link) -> None:
        """Does without a node, and asks it again a little later."""
        if self.has(link):
            self._try_again(link)
            self.drop(link)

    def _try_again(self, link: Link) -> None:
        """It may be about to begin: it was told to at much the same time."""
        tries, most = (self._returns, _RETURNS) if link.was_heard else (self._tries, _TRIES)
        tries[link.peer] += 1
        if tries[link.peer] <= most and len(self._again) < MOST:
            self._again[link.peer] = self._clock.now() + _AGAIN_SECONDS

    def came_from(self, name: str | None) -> None:
        """A node, or the source, has given a chunk: its silences before that count no more."""
        if link := self._links.get(name or ""):
            self._returns.pop(link.peer, None)

    def drop(self, link: Link) -> None:
        """Does without a node, until it calls."""
        if self.has(link):
            del self._links[link.peer.node_id]
            self._left(link.peer.node_id)
            self._dropped.append(link)
            self._lock.notify_all()

    def refuse(self, link: Link, why: str) -> None:
        """Has nothing more come from a node that is of no use, or has given what is wrong."""
        _log.warning("peer.refused", node=link.peer.node_id, problem=why)
        self._refused.add(link.peer.node_id)
        self.drop(link)

    def refuse_named(self, name: str, why: str) -> None:
        """As `refuse`, of one that may not be followed at present."""
        link = self._links.get(name)
        if link is None:
            self._refused.add(name)
        else:
            self.refuse(link, why)

    def doubt(self, name: str) -> None:
        """One of several that have given a chunk which is wrong: each may be who has lied."""
        self._doubts[name] += 1
        link = self._links.get(name)
        if link and self._doubts[name] >= _DOUBTS:
            self.refuse(link, "chunks in which it had a part are not what they must be")

    def tidy(self) -> list[Peer]:
        """Drops those that have fallen silent; whom it is time to try again."""
        now = self._clock.now()
        for link in [one for one in self._links.values() if one.silence(now) > _SILENCE_SECONDS]:
            _log.info("peer.silent", node=link.peer.node_id)
            self.lose(link)
        due = [peer for peer, at in self._again.items() if at <= now]
        for peer in due:
            del self._again[peer]
        return due

    def drop_all(self) -> None:
        """Does without all of them."""
        self._again.clear()
        for link in list(self._links.values()):
            self.drop(link)

    def take_dropped(self) -> list[Link]:
        """Links that are to be closed, without the lock."""
        dropped, self._dropped = self._dropped, []
        return dropped
