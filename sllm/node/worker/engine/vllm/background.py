"""Requests that nobody waits for: they stand still while others get their first token.

vLLM's scheduler goes through the list of those that run, and then of those that wait. Who is not in
the former for a step keeps its place in the cache, and the model's runner takes it up again as it
does after a preemption.
"""

from collections.abc import Iterable, Iterator
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
    if not (only_if and batch.has_awaited()):
        yield
        return
    running, waiting = _aside(scheduler.running, batch), _aside(scheduler.waiting, batch)
    keys = {one.request_id for one in running}
    scheduler.running = [one for one in scheduler.running if one.request_id not in keys]
    scheduler.max_num_active_reqs -= len(running)
    scheduler.waiting.remove_requests(waiting)
    try:
        yield
    finally:
        scheduler.running += running
        scheduler.max_num_active_reqs += len(running)
        for one in waiting:  # behind all others
            scheduler.waiting.add_request(one)


def _aside(requests: Iterable[Any], batch: Batch) -> list[Any]:
    return [one for one in requests if batch.is_background(one.request_id)]
