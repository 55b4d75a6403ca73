"""A bound on the processor's time that foreign Python may take in a thread."""

import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_LOOK = 0.05
"""Seconds between two looks at how long it has taken."""


class TookTooLong(BaseException):
    """Raised within the block. No `Exception`: nothing within may take it for one of its own."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Bounds what the calling thread may compute within the block.

    The thread's own time counts, not the clock on the wall: a busy machine makes nobody slow.
    What is in C ends by itself; the next line of Python does not come.

    Raises:
        TookTooLong: It has taken more.
    """
    thread, done = threading.get_ident(), threading.Event()
    lock = threading.Lock()
    watch = threading.Thread(target=_watch, args=(thread, seconds, done, lock), daemon=True)
    watch.start()
    try:
        yield
    finally:
        with lock:  # from here on nothing is raised any more
            done.set()


def _watch(thread: int, seconds: float, done: threading.Event, lock: threading.Lock) -> None:
    clock = time.pthread_getcpuclockid(thread)
    begun = time.clock_gettime(clock)
    while not done.wait(_LOOK):
        with lock:
            if done.is_set() or time.clock_gettime(clock) - begun < seconds:
                continue
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(thread), ctypes.py_object(TookTooLong)
            )
            return
