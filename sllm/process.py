"""What the servers' processes share: how they end, and which of their threads give way."""

import asyncio
import ctypes
import gc
import getpass
import os
import signal
import threading
from contextlib import suppress
from pathlib import Path

_NICENESS = 10
_PRIVATE = 0o077
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PR_SET_CHILD_SUBREAPER = 36
_M_MMAP_THRESHOLD = -3  # malloc.h
_LARGE_BYTES = 1 << 20


async def until_terminated() -> None:
    """Returns once the process has got SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    await asked.wait()


def keep_private() -> None:
    """Has all files and directories that this process and its children make be its user's alone.

    Weights, prompts in logs and the state of a cluster are nobody else's business, whatever mask
    the process was started with.
    """
    os.umask(_PRIVATE)


def make_private(path: Path) -> None:
    """Takes a file or directory that an earlier version has made from everybody else.

    One that is not there, belongs to somebody else or lies on a disk that takes nothing stays.
    """
    with suppress(OSError):
        path.chmod(path.stat().st_mode & ~_PRIVATE)


def home_variables(instead: Path) -> dict[str, str]:
    """Variables for children of a user without a name, or a home where libraries keep caches.

    As in containers, whose users are in no list and have a home that is not there. Libraries look
    for both, and fail, or write beside the working directory.

    Args:
        instead: A home for them; made once somebody writes there.
    """
    found = {}
    home = os.path.expanduser("~")
    if not (os.path.isabs(home) and os.path.isdir(home) and os.access(home, os.W_OK | os.X_OK)):
        found["HOME"] = str(instead.absolute())
    try:
        getpass.getuser()
    except (KeyError, OSError):  # the latter from Python 3.13 on
        found["LOGNAME"] = f"uid-{os.getuid()}"
    return found


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


def adopt_orphans() -> None:
    """Makes this process the parent of its children's children once these have lost theirs.

    It is to wait for them then: in a container there may be nobody else who does.

    Raises:
        OSError: The kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def return_large_memory() -> None:
    """Has large blocks go back to the system when they are freed; see mallopt(3).

    By itself glibc keeps those of a size that it has seen freed, and servers that take large
    messages grow with each.
    """
    ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)


def leave_out_of_collections() -> None:
    """Has garbage collections look at nothing that is there by now, such as modules.

    A server calls it once it has started: collections of the oldest generation would look at all of
    it for 50 to 150 ms each, in which no stream goes on.
    """
    gc.collect()
    gc.freeze()


def give_way() -> None:
    """Has the calling thread leave the processor to others of the process; see setpriority(2).

    For threads that carry bytes: an event loop beside them must have its turn at once, and needs
    little. There is no way back for the thread.
    """
    thread = threading.get_native_id()
    # Where all of the process gives way already, there may be no way back to less.
    niceness = max(_NICENESS, os.getpriority(os.PRIO_PROCESS, thread))
    os.setpriority(os.PRIO_PROCESS, thread, niceness)
