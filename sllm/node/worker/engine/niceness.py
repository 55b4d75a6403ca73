"""Who goes before an engine's threads where processors are short; see setpriority(2)."""

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final

NICENESS: Final = 11
"""Of an engine's threads: whatever starts, and whoever passes tokens on, goes before. A start costs
little, and how long it takes is foretold."""
BACKGROUND_NICENESS: Final = 18
"""Of the same while nobody waits for what they compute: whoever is waited for goes before, be it in
another process. By these two the threads are known: no other thread of a worker has them."""
_ROUNDS: Final = 8
"""In which threads are looked for: those that move may start others meanwhile."""


def stand_back() -> None:
    """Has the calling thread be one of an engine's, and whatever threads it starts."""
    _set(threading.get_native_id(), NICENESS)


def may_go_behind() -> bool:
    """Whether an engine's threads may go behind all others, and come back; tries it out.

    They are told from the rest of the process by their niceness, unless all of it has that.
    """
    if os.getpriority(os.PRIO_PROCESS, os.getpid()) >= NICENESS:
        return False
    try:
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(_comes_back).result()
    except RuntimeError:  # no thread can be had
        return False


class Standing:
    """Of the engine's threads of this process: behind all others, or as `stand_back` has them.

    Without the right to come back (CAP_SYS_NICE, or RLIMIT_NICE) they never go.
    """

    def __init__(self) -> None:
        """They are as they were."""
        self._is_behind = False
        self._may_go: bool | None = None

    def set(self, *, behind: bool) -> None:
        """Has them go behind all others, or come back. In any thread, one at a time."""
        if behind == self._is_behind:
            return
        if self._may_go is None:
            self._may_go = may_go_behind()
        if self._may_go:
            self._is_behind = behind
            levels = NICENESS, BACKGROUND_NICENESS
            _move(*(levels if behind else reversed(levels)))


def _comes_back() -> bool:
    thread = threading.get_native_id()
    try:
        for niceness in (BACKGROUND_NICENESS, NICENESS):
            os.setpriority(os.PRIO_PROCESS, thread, niceness)
            if _niceness(thread) != niceness:
                return False
    except OSError:
        return False
    return True


def _move(before: int, after: int) -> None:
    for _ in range(_ROUNDS):
        moving = [thread for thread in _threads() if _niceness(thread) == before]
        for thread in moving:
            with suppress(ProcessLookupError):
                os.setpriority(os.PRIO_PROCESS, thread, after)
        if not moving:
            return


def _threads() -> Iterator[int]:
    return map(int, os.listdir("/proc/self/task"))


def _niceness(thread: int) -> int | None:
    """None: it has ended."""
    try:
        return os.getpriority(os.PRIO_PROCESS, thread)
    except ProcessLookupError:
        return None


def _set(thread: int, niceness: int) -> None:
    """Where all of the process gives way already, there may be no way back to less."""
    os.setpriority(os.PRIO_PROCESS, thread, max(niceness, os.getpriority(os.PRIO_PROCESS, thread)))
