"""What the servers' processes share: how they end, and which of their threads give way."""

import asyncio
import ctypes
import os
import signal
import threading

_NICENESS = 10
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


async def until_terminated() -> None:
    """Returns once the process has got SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    await asked.wait()


def die_with_parent(parent_pid: int) -> None:
    """Has the kernel kill this process when its parent ends, however that ends.

    Called in a child; `parent_pid` tells whether the parent ended before the call took effect.

    Raises:
        OSError: The kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), signal.SIGKILL)


def give_way() -> None:
    """Has the calling thread leave the processor to others of the process; see setpriority(2).

    For threads that carry bytes: an event loop beside them must have its turn at once, and needs
    little. There is no way back for the thread.
    """
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
