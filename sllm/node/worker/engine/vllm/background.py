"""Requests that nobody waits for: they stand still while others get their first token.

vLLM's scheduler goes through the list of those that run. Who is not in it for a step keeps its
place in the cache, and the model's runner takes it up again as it does after a preemption.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sllm.node.worker.engine.vllm.batch import Batch


@contextmanager
def standing_aside(scheduler: Any, batch: Batch, *, only_if: bool) -> Iterator[None]:
    """Has them stand aside within the context, if anybody else has no token yet.

    Args:
        scheduler: the core's.
        batch: its requests.
        only_if: whether they may. Where those that are waited for find no room in the cache, the
            others have to go on to make some.
    """
    aside = _aside(scheduler, batch) if only_if and batch.has_awaited() else []
    if not aside:
        yield
        return
    keys = {one.request_id for one in aside}
    scheduler.running = [one for one in scheduler.running if one.request_id not in keys]
    scheduler.max_num_active_reqs -= len(aside)
    try:
        yield
    finally:
        scheduler.running += aside
        scheduler.max_num_active_reqs += len(aside)


def _aside(scheduler: Any, batch: Batch) -> list[Any]:
    return [one for one in scheduler.running if batch.is_background(one.request_id)]
