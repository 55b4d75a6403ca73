"""Processes by their descriptors (pidfd_open(2)): awaited and signalled, and never mistaken."""

import asyncio
import os
import signal
from contextlib import suppress


class ProcessHandle:
    """A process by a file descriptor of the kernel's; its number may belong to another one later.

    `ended` comes once the whole process is gone, whoever its parent is and whatever that says:
    nothing that it had mapped is read or written any more. A parent still has to wait for it.
    Belongs to the event loop.
    """

    def __init__(self, pid: int) -> None:
        """Begins to watch a process; one that has gone already has ended.

        Raises:
            OSError: there is no descriptor for it.
        """
        self.pid = pid
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when it has."""
        try:
            self._fd = os.pidfd_open(pid)
        except ProcessLookupError:
            self.ended.set_result(None)
            return
        asyncio.get_running_loop().add_reader(self._fd, self._note_end)

    def send(self, number: signal.Signals) -> None:
        """Signals it, unless it has ended."""
        if not self.ended.done():
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._fd, number)

    def _note_end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)
        self.ended.set_result(None)
