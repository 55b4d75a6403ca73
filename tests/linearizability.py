"""Whether what several clients saw could have come of one order of their calls (Wing and Gong).

A call takes effect at one moment between its beginning and its end. One whose end nobody saw may
have taken effect at any moment after its beginning, or not at all.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

State = TypeVar("State", bound=Hashable)
Asked = TypeVar("Asked")
Seen = TypeVar("Seen")


@dataclass(frozen=True, slots=True)
class Event(Generic[Asked, Seen]):
    """One call of one client."""

    began: float
    ended: float | None
    """None: nobody saw its end."""
    asked: Asked
    seen: Seen | None = None
    """What came of it, if its end was seen."""


def explained(
    history: Sequence[Event[Asked, Seen]],
    start: State,
    step: Callable[[State, Asked], tuple[State, Seen]],
) -> bool:
    """Whether there is an order in which all calls do what `step` says of them.

    Each state is looked at once with the calls that led to it: what follows is then the same.
    """
    ends = [float("inf") if one.ended is None else one.ended for one in history]
    certain = frozenset(n for n, one in enumerate(history) if one.ended is not None)
    todo: list[tuple[frozenset[int], State]] = [(frozenset(), start)]
    known = set(todo)
    while todo:
        done, state = todo.pop()
        left = [number for number in range(len(history)) if number not in done]
        if certain <= done:
            return True
        latest = min(ends[number] for number in left)
        for number in left:
            one = history[number]
            if one.began > latest:
                continue  # another has ended before it began
            after, seen = step(state, one.asked)
            reached = done | {number}, after
            if (one.ended is None or seen == one.seen) and reached not in known:
                known.add(reached)
                todo.append(reached)
    return False
