"""Ctrl-C where there is nothing yet to take back: it ends the process, as the kernel does it.

Python would raise KeyboardInterrupt wherever it is, in the middle of an import above all, and show
where that was.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


def let_interrupts_end_it() -> None:
    """Has SIGINT end the process, unless something else was settled: a handler, or to ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def interrupts_end_it() -> Iterator[None]:
    """The same within the context alone; what begins work inside sets a handler of its own."""
    before = signal.getsignal(signal.SIGINT)
    let_interrupts_end_it()
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
            signal.signal(signal.SIGINT, before)
