"""Finds out whether forms can be had, each in a process that may come to grief."""

import asyncio
import json
import subprocess
import sys
from typing import Final

from async_lru import alru_cache

from sllm.errors import InvalidStructuredOutput, NoCapacity
from sllm.structured_output import grammar
from sllm.structured_output.form import Form, Kind

_KEPT: Final = 128
"""Verdicts."""
_AT_ONCE: Final = 2
_TIMEOUT: Final = 60.0
"""Seconds that a process may take altogether, also where processors are short."""
_LETTERS_SHOWN: Final = 1000
_TOO_MUCH: Final = "it takes more time or memory than a form may; make it smaller"


class Checker:
    """Belongs to one event loop. What was found out once is kept."""

    def __init__(self) -> None:
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._problem = alru_cache(maxsize=_KEPT)(self._find_out)

    async def check(self, form: Form) -> None:
        """Returns if a form can be had: within its bounds at once, the first time in a moment.

        Raises:
            InvalidStructuredOutput: It cannot; the message says what is wrong, and where.
            NoCapacity: There is no process to find out.
        """
        form.validate()
        if form.kind in (Kind.CHOICE, Kind.JSON_OBJECT):
            return
        if problem := await self._problem(form):
            raise InvalidStructuredOutput(f"{form.kind} cannot be used: {problem}")

    async def _find_out(self, form: Form) -> str:
        async with self._turns:
            return await asyncio.to_thread(_problem, form)


def _problem(form: Form) -> str:
    """What is wrong with a form, in words; empty if nothing is."""
    command = [sys.executable, "-I", grammar.__file__]
    asked = json.dumps([form.kind, form.texts])
    try:
        # In a thread, not by the event loop, whose way of starting processes is a fork: see
        # `node/instances/zygote_process.py`.
        found = subprocess.run(
            command, input=asked, capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        return _TOO_MUCH
    except OSError as error:
        raise NoCapacity(f"no process to look at {form.kind}: {error}") from error
    if found.returncode or not found.stdout:
        return _TOO_MUCH
    problem: str = json.loads(found.stdout)
    return problem[:_LETTERS_SHOWN]
