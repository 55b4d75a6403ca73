"""Results on their way into the store."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from sllm import errors
from sllm.control.batches import recorder
from sllm.control.batches.book import BatchBook
from sllm.control.batches.recorder import Recorder
from sllm.control.batches.store import BatchStore
from sllm.control.types.batches import Batch, BatchState, Ended
from tests.control.batches.test_keepers import ended, item, made
from tests.support import assert_eventually


class Refusing(BatchStore):
    """Takes no result of one batch, whoever tries again."""

    def record(self, batch: Batch, ended: Sequence[Ended], now: float) -> Batch:
        if batch.run_id == "bad":
            raise errors.InvalidArgument("request is too large")
        return super().record(batch, ended, now)


async def test_results_that_can_never_be_stored_hold_up_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "_MOST", 2)
    store = Refusing(tmp_path / "batches.db")
    for run_id in ("bad", "good"):
        made(store, [item(number, run_id) for number in range(2)])
    book = BatchBook(store)
    await book.load()
    recording = Recorder(book)
    for number in range(2):
        for run_id in ("bad", "good"):
            recording.add(f"of {run_id}", ended(item(number, run_id)))
    await assert_eventually(lambda: book.batch("of good").state is BatchState.ENDED)
    await recording.has_room()
    assert book.batch("of bad").state is BatchState.RUNNING
    await recording.close()
    await book.close()
