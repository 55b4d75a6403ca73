"""Which chunk a node gets next, and from whom: a pure core.

Some have the whole checkpoint, the source or nodes that hold it; fellows are getting it, as this
node is. A chunk is asked of the former by one of the fellows alone, its owner, and the others have
it from there: so that it leaves the source, or whoever holds it, once for all of them. One that has
begun all that it owns asks another to leave it some.
"""

import heapq
import math
from collections import Counter
from collections.abc import Collection, Iterable

from sllm.checkpoint.importing.exchange import Turn
from sllm.node.peers.giver import Giver, best
from sllm.node.peers.news import News
from sllm.node.peers.shares import Shares, weight

MOST_OF_ONE = 2
"""Chunks that one giver is asked for at a time: one on its way while the next is got ready. With
fellows it is one: there are others to be asked meanwhile, and each is to come soon."""
MOST_OF_SOURCE = 8
"""Chunks that all fellows together ask the source for at a time: what is on its way at once comes
late."""
MEETING_SECONDS = 3.0
"""How long the first answer of a fellow is waited for: each chunk is to have one owner to all."""
ASKING_SECONDS = 0.5
"""Between two times that a node asks others to leave it some of what they own."""
_LATE_SECONDS = 5.0
"""What was begun so long ago may be got by another as well, however fast others are."""
_LATE_TIMES = 4.0
"""The same, in times of what the slowest chunk has taken."""
_NOTHING_SECONDS = 60.0
"""The same, where none has come yet."""
_LOOK_SECONDS = 1.0
"""Between two looks at what is late."""
_FEW = 4
"""Chunks that a giver has, of which one is taken: those that are used first, but not in their
order, or all would have the same, and nothing to give one another."""


class Board:
    """What has come, what others have, and whose turn it is. Belongs to whoever holds its lock."""

    def __init__(self, own: str, count: int, written: Collection[int]) -> None:
        """Begins with nobody.

        Args:
            own: this node's name.
            count: of the checkpoint's chunks.
            written: those that need only be looked at: they were written before.
        """
        self._own = own
        self._count = count
        self._written = sorted(written, reverse=True)
        self._missing = set(range(count)) - set(written)
        self._disputed: set[int] = set()
        """Chunks that the source alone can give: nobody is believed what they are."""
        self._givers: dict[str, Giver] = {}
        self._shares = Shares(own)
        self._mine: list[int] | None = None
        """Chunks that this node owns, the next one last. None: to be worked out."""
        self._asked, self._asked_at = "", -math.inf
        """The fellow that was asked last to leave some, and when."""
        self._looked_at = -math.inf
        """When nothing was found to be late."""
        self._for_all: dict[int, float] = {}
        """Chunks on their way here that others are to have from here, and since when."""
        self._slowest = 0.0
        """Seconds that the slowest of these has taken which has come."""
        self._from_source = 0
        """Turns under way."""
        self._got_on_at = math.inf
        """When a chunk was last begun or had, here or elsewhere."""

    @property
    def givers(self) -> Collection[Giver]:
        """All that are there."""
        return self._givers.values()

    @property
    def _fellows(self) -> list[Giver]:
        return [one for one in self._givers.values() if one.fellow]

    # --- what others say ----------------------------------------------------------------------

    def join(self, name: str, *, fellow: bool, awaited_until: float = -math.inf) -> None:
        """Takes note of another node; it has answered once `told` is called.

        Args:
            name: the node's.
            fellow: whether it is getting the checkpoint as well.
            awaited_until: when its answer is not waited for any more. One that has called knows of
                this node, and need not be waited for.
        """
        if name == self._own:
            return
        if giver := self._givers.get(name):
            giver.awaited_until = min(giver.awaited_until, awaited_until)
            return
        self._givers[name] = Giver(name, fellow, awaited_until)
        if fellow:
            self._shares.join(name)
            self._mine = None

    def leave(self, name: str) -> None:
        """Strikes a node out. Its turns under way still end, each by itself."""
        self._givers.pop(name, None)
        self._shares.leave(name)
        self._mine = None

    def told(self, name: str, news: News, now: float) -> None:
        """Takes in what a node says of itself."""
        giver = self._givers.get(name)
        if giver is None:
            return
        giver.told(news, self._count, now)
        if news.whole or news.arrived or news.begun or news.left:
            self._got_on_at = now
        for chunk in self._real(news.begun):
            self._shares.claim(chunk, name)
        for chunk in self._real(news.left):
            # What is this node's own by now, nobody else can leave to anybody.
            if not self._shares.is_own(chunk):
                self._shares.claim(chunk, news.left[chunk])
        if news.whole:
            self._shares.leave(name)
        if news.whole or news.left:
            self._mine = None

    def dispute(self, chunk: int) -> None:
        """Has a chunk come from the source itself, whoever has it, unless it is here by now."""
        self._disputed.add(chunk)

    def _real(self, chunks: Iterable[int]) -> Iterable[int]:
        return (chunk for chunk in chunks if chunk < self._count)

    # --- turns --------------------------------------------------------------------------------

    def take(self, now: float) -> Turn | None:
        """The next turn. None: there is none before others have got on."""
        self._got_on_at = min(self._got_on_at, now)
        turn = self._next(now)
        if turn is None:
            return None
        self._got_on_at = now
        self._missing.discard(turn.chunk)
        self._count_turn(turn, 1)
        if self.is_for_all(turn):
            self._shares.claim(turn.chunk, self._own)
            self._for_all[turn.chunk] = now
        return turn

    def _next(self, now: float) -> Turn | None:
        if self._written:
            return Turn(self._written.pop())
        if disputed := self._disputed & self._missing:
            return Turn(min(disputed))
        if not self._has_met(now):
            return self._of_fellow()
        # What all wait for goes first, and then what a fellow has.
        first = None if self._for_all else self._as_owner()
        return first or self._of_fellow() or self._as_owner() or self._in_place_of_late(now)

    def is_for_all(self, turn: Turn) -> bool:
        """Whether fellows are to have a turn's chunk from here."""
        giver = self._givers.get(turn.giver) if turn.giver else None
        return giver is None or not giver.fellow

    def done(self, turn: Turn, now: float) -> None:
        """A turn's chunk has come."""
        self._got_on_at = now
        self._count_turn(turn, -1)
        self._slowest = max(self._slowest, now - self._for_all.pop(turn.chunk, now))

    def failed(self, turn: Turn) -> None:
        """A turn's chunk has not come, and is to have another."""
        self._count_turn(turn, -1)
        self._for_all.pop(turn.chunk, None)
        self._missing.add(turn.chunk)
        self._mine = None
        for giver in self._givers.values():
            if turn.chunk in giver.has:
                giver.fresh.add(turn.chunk)

    def instead(self, turn: Turn) -> Turn | None:
        """Whoever else gives a turn's chunk now; the turn goes on with that one."""
        if turn.chunk in self._disputed:
            return None
        others = [one for one in self._givers.values() if one.name != turn.giver]
        able = [one for one in others if one.gives(turn.chunk) and self._has_room(one)]
        giver = best(one for one in able if one.fellow) or best(able)
        if giver is None:
            return None
        other = Turn(turn.chunk, giver.name)
        self._count_turn(turn, -1)
        self._count_turn(other, 1)
        return other

    def _count_turn(self, turn: Turn, by: int) -> None:
        if turn.giver is None:
            self._from_source += by
        elif giver := self._givers.get(turn.giver):
            giver.in_flight = max(0, giver.in_flight + by)

    def _has_met(self, now: float) -> bool:
        """Whether all fellows know of this node, or will not."""
        return all(one.answered or now > one.awaited_until for one in self._fellows)

    def _has_room(self, giver: Giver) -> bool:
        """Whether it may be asked for one more."""
        most = 1 if len(self._shares.names) > 2 else MOST_OF_ONE
        return giver.answered and giver.in_flight < most

    # --- from fellows -------------------------------------------------------------------------

    def _of_fellow(self) -> Turn | None:
        free = filter(self._has_room, self._fellows)
        for giver in sorted(free, key=lambda one: one.in_flight):
            chunk = self._useful_of(giver)
            if chunk is not None:
                return Turn(chunk, giver.name)
        return None

    def _useful_of(self, giver: Giver) -> int | None:
        # What this node has got by now is of no use any more.
        giver.fresh &= self._missing
        if not giver.fresh:
            return None
        few = heapq.nsmallest(_FEW, giver.fresh)
        chunk = max(few, key=lambda one: weight(one, self._own))
        giver.fresh.remove(chunk)
        return chunk

    # --- from those that have all -------------------------------------------------------------

    def _as_owner(self) -> Turn | None:
        mine = self._owned()
        while mine and not self._is_to_be_begun(mine[-1]):
            mine.pop()
        # The next one, unless those that are to have it lack it, and have another.
        for chunk in reversed(mine):
            if turn := self._of_holder(chunk):
                return turn
            if self._all_holders_are_whole:
                return None
        return None

    @property
    def _all_holders_are_whole(self) -> bool:
        return all(one.whole for one in self._givers.values() if not one.fellow)

    def _owned(self) -> list[int]:
        if self._mine is None:
            self._mine = sorted(filter(self._shares.is_own, self._missing), reverse=True)
        return self._mine

    def _is_to_be_begun(self, chunk: int) -> bool:
        is_own = chunk in self._missing and self._shares.is_own(chunk)
        return is_own and not any(one.gives(chunk) for one in self._fellows)

    def _of_holder(self, chunk: int) -> Turn | None:
        """A chunk of whoever has all; of the source only where nobody has, or will have it."""
        holders = [one for one in self._givers.values() if not one.fellow]
        giver = best(one for one in holders if one.gives(chunk) and self._has_room(one))
        if giver is not None:
            return Turn(chunk, giver.name)
        sharing = len(self._shares.names)
        most = max(1, MOST_OF_SOURCE // sharing) if sharing > 1 else self._count
        return None if holders or self._from_source >= most else Turn(chunk)

    # --- what others own ----------------------------------------------------------------------

    def to_ask(self, now: float) -> str | None:
        """A fellow that is asked now to leave this node some of what it owns. None: nobody is."""
        is_early = now - self._asked_at < ASKING_SECONDS
        if is_early or not self._has_met(now) or any(map(self._is_to_be_begun, self._owned())):
            return None
        self._asked_at = now
        left = self._left_to_others()
        if len(left) > 1:
            left.pop(self._asked, None)  # it was asked before
        self._asked = max(left, key=lambda name: (left[name], name), default="")
        return self._asked or None

    def _left_to_others(self) -> Counter[str]:
        """How many chunks others own that nobody has begun."""
        fellows = self._fellows
        begun = {chunk for one in fellows for chunk in one.begun}
        return Counter(
            self._shares.owner(chunk)
            for chunk in self._missing - begun
            if not any(one.gives(chunk) for one in fellows)
        )

    def leave_to(self, name: str) -> Collection[int]:
        """The last half of what this node owns and has not begun: a fellow's from now on."""
        if name not in self._givers:
            return ()
        mine = list(filter(self._is_to_be_begun, self._owned()))
        left = mine[: (len(mine) + 1) // 2]
        for chunk in left:
            self._shares.claim(chunk, name)
        self._mine = None
        return left

    def _in_place_of_late(self, now: float) -> Turn | None:
        """What its owner has begun, and does not get, or nobody begins: one other gets it."""
        if now - self._looked_at < _LOOK_SECONDS:
            return None
        late = self._late_seconds
        for fellow in self._fellows:
            for chunk, since in fellow.begun.items():
                is_late = chunk in self._missing and now - since > late
                if is_late and self._shares.is_next(chunk, after=fellow.name):
                    return self._of_holder(chunk)
        self._looked_at = now
        return self._of_nobody() if now - self._got_on_at > 2 * late else None

    @property
    def _late_seconds(self) -> float:
        slowest = max((self._slowest, *(one.slowest for one in self._givers.values())))
        return max(_LATE_SECONDS, _LATE_TIMES * slowest) if slowest else _NOTHING_SECONDS

    def _of_nobody(self) -> Turn | None:
        """The first of those that nobody gets; they are all this node's from now on.

        Nodes that do not hear all others may each take a chunk for another's, who does not know.
        """
        for chunk in self._missing:
            self._shares.claim(chunk, self._own)
        self._mine = None
        return self._as_owner()
