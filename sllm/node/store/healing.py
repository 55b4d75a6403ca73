"""What is done about a copy that turns out to be corrupt: it is replaced, once."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from sllm.errors import CheckpointCorrupt, SourceForbidden, SourceNotFound, SourceUnavailable

_log = structlog.get_logger()

Result = TypeVar("Result")


async def healed(
    attempt: Callable[[], Awaitable[Result]],
    again: Callable[[], Awaitable[Result]],
    is_replaceable: Callable[[], bool],
) -> Result:
    """What `attempt` gives, or `again` if that found a copy to be corrupt.

    Whoever reads a corrupt copy sets it aside; `again` therefore imports it anew.

    Args:
        attempt: reads the copy.
        again: reads it once more, and is not healed itself.
        is_replaceable: whether another copy can be had, asked once one is corrupt.

    Raises:
        CheckpointCorrupt: the copy cannot be replaced, or its source cannot be had any more.
        SllmError: as `attempt` and `again`.
    """
    try:
        return await attempt()
    except CheckpointCorrupt as error:
        _log.warning("node.checkpoint_corrupt", problem=error.message)
        if not is_replaceable():
            raise
        try:
            return await again()
        except (SourceNotFound, SourceForbidden, SourceUnavailable) as gone:
            # What is wrong with the copy is the fault to mend; the source is but what cannot help.
            raise error from gone
