"""Finds out whether forms can be had, each in a process that may come to grief."""

import asyncio
import json
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import structlog
from async_lru import alru_cache

from sllm.errors import InvalidStructuredOutput, NoCapacity, QueueFull
from sllm.structured_output import grammar
from sllm.structured_output.form import Form, Kind

log = structlog.get_logger()

_KEPT: Final = 128
"""Verdicts."""
_AT_ONCE: Final = 2
MAX_WAITING: Final = 64
_TIMEOUT: Final = 60.0
"""Seconds that a process may take altogether, also where processors are short."""
_RETRY_SECONDS: Final = 2.0
_LETTERS_SHOWN: Final = 1000
_TOO_MUCH: Final = "it takes more time or memory than a form may; make it smaller"
_OWN_FAULT: Final = frozenset(
    -one for one in (signal.SIGXCPU, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS)
)
"""How a process ends that its form has brought to its end. So does one that says nothing, over
which the library has panicked, or Python run out of memory."""


class Checker:
    """Belongs to one event loop. What was found out once is kept."""

    def __init__(self) -> None:
        # Whoever leaves does not end the process that was started for it: it keeps its thread.
        self._threads = ThreadPoolExecutor(_AT_ONCE, "check-form")
        self._waiting = 0
        self._problem = alru_cache(maxsize=_KEPT)(self._find_out)

    async def check(self, form: Form) -> None:
        """Returns if a form can be had: within its bounds at once, the first time in a moment.

        Raises:
            InvalidStructuredOutput: It cannot; the message says what is wrong, and where.
            QueueFull: Too many others wait to know the same of theirs.
            NoCapacity: There is no process to find out, or it came to nothing.
        """
        form.validate()
        if form.kind in (Kind.CHOICE, Kind.JSON_OBJECT):
            return
        if self._waiting >= MAX_WAITING and not self._problem.cache_contains(form):
            raise QueueFull(
                f"{self._waiting} forms wait to be looked at; try again later",
                retry_after=_RETRY_SECONDS,
            )
        self._waiting += 1
        try:
            problem = await self._problem(form)
        finally:
            self._waiting -= 1
        if problem:
            raise InvalidStructuredOutput(f"{form.kind} cannot be used: {problem}")

    def close(self) -> None:
        """Looks at no more of them."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _find_out(self, form: Form) -> str:
        return await asyncio.get_running_loop().run_in_executor(self._threads, _problem, form)


def _problem(form: Form) -> str:
    """What is wrong with a form, in words; empty if nothing is."""
    command = [sys.executable, "-I", grammar.__file__]
    asked = json.dumps([form.kind, form.texts])
    try:
        # Not by the event loop, whose way of starting processes is a fork: see
        # `node/instances/zygote_process.py`.
        found = subprocess.run(
            command, input=asked, capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoCapacity(f"no process could look at {form.kind}: {error}") from error
    if found.returncode in _OWN_FAULT or not (found.returncode or found.stdout):
        return _TOO_MUCH
    if found.returncode:
        log.error(
            "form.not_looked_at", status=found.returncode, said=found.stderr[-_LETTERS_SHOWN:]
        )
        raise NoCapacity(f"the process that looked at {form.kind} has ended: try again")
    problem: str = json.loads(found.stdout)
    return problem[:_LETTERS_SHOWN]
