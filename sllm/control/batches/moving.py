"""Batches on their way from one store to another, while nobody uses either."""

from typing import Final

from sllm import errors
from sllm.control.batches.keeper import BatchKeeper
from sllm.control.types.batches import Batch

_PAGE: Final = 32
"""Requests, or results, that are in memory at once: each may be large."""


def stage(source: BatchKeeper, target: BatchKeeper) -> list[Batch]:
    """Copies what all batches consist of into a store that has none.

    They are batches there once `target.add` makes them such; until then nothing is left of them
    when the store is opened again.

    Raises:
        errors.StartFailed: The target has some.
        errors.QueueFull: It has no room for them.
    """
    if target.batches():
        raise errors.StartFailed("there are batches already where these are to go: delete them")
    batches = source.batches()
    for batch in batches:
        _copy(batch, source, target)
    return batches


def _copy(batch: Batch, source: BatchKeeper, target: BatchKeeper) -> None:
    for name in source.deployments(batch.run_id):
        after = -1
        while items := source.waiting(batch.run_id, name, after, _PAGE):
            target.stage(items)
            after = items[-1].number
    first = 0
    while outcomes := source.results(batch.run_id, first, _PAGE):
        target.stage_results(batch.run_id, outcomes)
        first = outcomes[-1].number + 1
