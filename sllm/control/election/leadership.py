"""The right to give orders, for as long as its lease surely lasts."""

import asyncio

from sllm import errors
from sllm.clock import Clock


class Leadership:
    """One control plane's, in one term: the `Authority` of a leader. Belongs to the event loop."""

    def __init__(self, term: int, since: int, until: float, clock: Clock) -> None:
        """Begins.

        Args:
            term: Above that of everyone who led before.
            since: The revision of etcd at which it began, which no other leader has.
            until: Until when nobody else can lead, in the clock's seconds.
            clock: Goes on while the machine sleeps.
        """
        self.number = term
        self.since = since
        self.ended = asyncio.Event()
        """Set once it is given up; what belongs to it has to end then."""
        self.later_term = 0
        """The highest term above this one that a node has told of. 0: none has."""
        self._until = until
        self._clock = clock

    @property
    def seconds_left(self) -> float:
        """For which nobody else can lead; not above 0 once somebody may."""
        return 0.0 if self.ended.is_set() else self._until - self._clock.now()

    def term(self) -> int:
        """See Authority. Looks at the clock itself: this process may have stood still."""
        if self.seconds_left <= 0:
            raise errors.NotLeader(
                "this control plane leads no more; another one does, or will soon: try again",
                retry_after=1.0,
            )
        return self.number

    def extend(self, until: float) -> None:
        """Its lease lasts longer."""
        self._until = max(self._until, until)

    def refused(self, error: errors.StaleTerm) -> None:
        """See Authority. Another one leads, or etcd has forgotten how often it has had leaders."""
        told = error.metadata.get("term", "")
        if told.isdecimal() and int(told) > self.number:
            self.later_term = max(self.later_term, int(told))
            self.give_up()

    def give_up(self) -> None:
        """Ends it: no order is given from now on."""
        self.ended.set()
