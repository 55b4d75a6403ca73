"""A part of a model's experts in memory, and threads that bring others in their place."""

import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import partial
from threading import Condition, Thread
from typing import Final

import numpy as np

from sllm.errors import Cancelled, WorkerDied
from sllm.node.worker.experts.foresight import Guess
from sllm.node.worker.experts.keeping import Keeping, Numbers, Shares

READ_THREADS: Final = 4
PATIENCE_SECONDS: Final = 60.0
"""For which a step waits without any expert arriving."""
_LIKELY: Final = 0.5
"""By which a guess is to be likelier than another expert is worth that would go for it; less likely
ones are not read ahead: the disk has others to read."""
_CLOSE_SECONDS: Final = 1.0
"""That a disk has to give what is being read: a process that ends has not much longer."""
_AHEAD: Final = 4 * READ_THREADS
"""Experts that are read ahead at once at most."""


@dataclass(frozen=True, slots=True)
class ExpertCounts:
    """What has become of what steps have asked for."""

    used: int = 0
    """Experts, once for each step and layer that used one."""
    waited_for: int = 0
    """Of these, those that were not there."""
    read: int = 0
    """Experts that were read from disk."""
    read_ahead: int = 0
    """Of these, those that no step had asked for yet."""
    held_bytes: int = 0
    """Memory that experts take, those that are being read included."""


@dataclass(slots=True)
class _Load:
    number: int
    victims: list[int] = field(default_factory=list)
    """Those whose memory it takes."""
    spare: int = 0
    """Bytes that these have beyond it, which nobody has before they are gone: once it is there."""
    begun: bool = False
    """Whether a thread works on it: its victims are going, and are not to be brought meanwhile."""


class ExpertCache:
    """Bounded memory for experts, by number over all layers. One thread asks: the engine's."""

    def __init__(
        self,
        sizes: Sequence[int],
        budget: int,
        keeping: Keeping,
        bring: Callable[[int, Sequence[int]], None],
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        """Starts the threads that read; nothing is there.

        Args:
            sizes: of each expert, in bytes.
            budget: bytes that they may take together; no layer has more.
            keeping: says which stay.
            bring: reads an expert to its place, in one of the threads; others give their memory.
            patience: seconds for which a step waits without any arriving.
        """
        self._sizes = sizes
        self._budget = self._left = budget
        self._keeping = keeping
        self._bring = bring
        self._patience = patience
        self._there: set[int] = set()
        self._coming: dict[int, _Load] = {}
        self._wanted: deque[_Load] = deque()
        self._ahead: deque[_Load] = deque()
        self._needed: frozenset[int] = frozenset()
        """What the step at hand uses: it stays."""
        self._failure: BaseException | None = None
        self._closed = False
        self._used = self._waited_for = self._read = self._read_ahead = 0
        self._changed = Condition()
        self._threads = [
            Thread(target=self._work, name=f"expert-read_{number}", daemon=True)
            for number in range(READ_THREADS)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def counts(self) -> ExpertCounts:
        """So far. In any thread."""
        held = self._budget - self._left
        return ExpertCounts(self._used, self._waited_for, self._read, self._read_ahead, held)

    @property
    def failure(self) -> BaseException | None:
        """Why nothing is read any more. In any thread."""
        return self._failure

    def need(self, numbers: Collection[int]) -> None:
        """Returns once all of these are there; they stay until the next call.

        Raises:
            SllmError: one cannot be read.
            WorkerDied: the disk gives nothing; requests may go on elsewhere.
            Cancelled: the model ends.
        """
        with self._changed:
            self._needed = frozenset(numbers)
            self._used += len(self._needed)
            if not self._needed <= self._there:
                self._forget_ahead()
            if missing := sorted(self._needed - self._there):
                self._waited_for += len(missing)
                self._want(missing)
                self._wait_until(lambda: self._needed <= self._there)

    def read_ahead(self, guess: Guess) -> None:
        """Has the likeliest of these read while others are computed with.

        Who goes for one is worth clearly less: else it is asked for again as soon as who comes.
        """
        likely = int(np.searchsorted(-guess.shares, -_LIKELY))
        shares = dict(zip(guess.numbers[:likely].tolist(), guess.shares.tolist(), strict=False))
        with self._changed:
            missing = [one for one in shares if one not in self._there and one not in self._coming]
            if not missing or self._closed:
                return
            idle, worth = self._idle(self._needed.union(shares))
            for number in missing[: max(0, _AHEAD - len(self._coming))]:
                least = deque(idle[worth < shares[number] - _LIKELY].tolist())
                victims = self._room(self._sizes[number], least)
                if victims is None:
                    return
                idle, worth = idle[len(victims) :], worth[len(victims) :]
                self._begin(number, victims, self._ahead)

    def close(self) -> bool:
        """Ends a step that waits, and the threads; whether none of them is reading any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        deadline = time.monotonic() + _CLOSE_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    # --- the engine's thread; the lock is held ------------------------------------------------

    def _forget_ahead(self) -> None:
        """Takes back what is read ahead and has not begun: what is waited for goes before it."""
        for load in self._ahead:
            del self._coming[load.number]
            self._there.update(load.victims)
            self._left += self._sizes[load.number] + load.spare - self._bytes(load.victims)
        self._ahead.clear()

    def _want(self, missing: Sequence[int]) -> None:
        least = self._least()
        for number in missing:
            if number in self._coming or number in self._there:  # it came while others waited
                continue
            while (victims := self._room(self._sizes[number], least)) is None:
                # What is being read ahead has the room, and may go as soon as it is there.
                there = len(self._there)
                self._wait_until(partial(self._has_more_than, there))
                least = self._least()
            self._begin(number, victims, self._wanted)

    def _has_more_than(self, count: int) -> bool:
        return len(self._there) > count

    def _begin(self, number: int, victims: list[int], line: deque[_Load]) -> None:
        left = self._left + self._bytes(victims) - self._sizes[number]
        spare = left if victims else 0
        self._left = left - spare
        self._there.difference_update(victims)
        load = self._coming[number] = _Load(number, victims, spare)
        line.append(load)
        self._changed.notify()

    def _room(self, size: int, least: deque[int]) -> list[int] | None:
        """Those that go so that there is room, taken out of `least`; None: it has not enough."""
        count, left = 0, self._left
        while left < size:
            if count == len(least):
                return None
            left += self._sizes[least[count]]
            count += 1
        return [least.popleft() for _ in range(count)]

    def _bytes(self, numbers: Sequence[int]) -> int:
        return sum(self._sizes[one] for one in numbers)

    def _least(self) -> deque[int]:
        """Those that may go, what is worth least first."""
        return deque(self._idle(self._needed)[0].tolist())

    def _idle(self, stay: AbstractSet[int]) -> tuple[Numbers, Shares]:
        """Those that may go but for some, what is worth least first; and what each is worth."""
        idle: Numbers = np.fromiter(self._there - stay, np.intp)
        worth = self._keeping.worth(idle)
        order = np.argsort(worth, kind="stable")
        return idle[order], worth[order]

    def _wait_until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            if self._failure:
                raise self._failure
            if self._closed:
                raise Cancelled("the model ends")
            if not self._changed.wait(self._patience):
                raise WorkerDied(
                    f"the disk has given none of {len(self._needed - self._there)} experts for "
                    f"{self._patience:g} s"
                )

    # --- the threads that read ----------------------------------------------------------------

    def _work(self) -> None:
        while (load := self._next()) is not None:
            try:
                self._bring(load.number, load.victims)
            except BaseException as error:  # whoever waits must hear of it, whatever it is
                self._fail(error)
                return
            self._land(load)

    def _next(self) -> _Load | None:
        with self._changed:
            while not self._closed:
                if load := self._take(self._wanted):
                    return load
                if load := self._take(self._ahead):
                    self._read_ahead += 1
                    return load
                self._changed.wait()
        return None

    def _take(self, line: deque[_Load]) -> _Load | None:
        """The first that may begin: not one whose memory another thread is taking as yet."""
        going = {one for load in self._coming.values() if load.begun for one in load.victims}
        found = next((load for load in line if load.number not in going), None)
        if found:
            line.remove(found)
            found.begun = True
        return found

    def _land(self, load: _Load) -> None:
        with self._changed:
            self._there.add(load.number)
            self._left += load.spare
            del self._coming[load.number]
            self._read += 1
            self._changed.notify_all()

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()
