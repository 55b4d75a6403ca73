"""Batches in etcd, so that whichever control plane comes to lead goes on with them.

Of each request either it is there, or what has come of it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final

from sllm import errors
from sllm.control.batches import etcd_layout as layout
from sllm.control.batches.etcd_layout import Head, Piece, Taken
from sllm.control.etcd.client import Etcd
from sllm.control.etcd.keys import NEVER, Change, CreatedAt, Delete, Entry, Put
from sllm.control.state import records
from sllm.control.state.etcd_writer import Writer
from sllm.control.types.batches import Batch, BatchState, Ended, Item, Outcome
from sllm.control.wire import batches as wire

_TOGETHER: Final = 100
"""Changes of one transaction: etcd takes 128, and this store's writer has one of its own."""
_RESULTS_TOGETHER: Final = 30
"""Each of which is three changes."""
_WRITTEN: Final = "batch-written"


class EtcdBatches:
    """`BatchKeeper` in etcd. Where it changes much, what it did before an error stays done."""

    def __init__(
        self,
        etcd: Etcd,
        leads_since: int | None,
        most_bytes: int,
        in_doubt: Callable[[], None] = lambda: None,
    ) -> None:
        """Removes what was never submitted to its end; may block.

        Args:
            etcd: Where they are. Stays open when this is closed.
            leads_since: See EtcdStore.
            most_bytes: All batches together may take up so much.
            in_doubt: See EtcdStore.

        Raises:
            errors.StateUnavailable: etcd does not answer.
            errors.StartFailed: There is a batch that cannot be read.
        """
        self._etcd = etcd
        self._writer = Writer(etcd, leads_since, in_doubt, _WRITTEN)
        self._most_bytes = most_bytes
        with records.readable(f"a batch in {etcd.name}"):
            heads = map(layout.head, etcd.under(layout.HEADS))
            self._heads = {one.batch.run_id: one for one in heads}
        self._staged: dict[str, Taken] = {}
        """What is no batch yet, by run."""
        for entry in etcd.under(layout.STAGED):
            self.unstage(entry.key.removeprefix(layout.STAGED))

    def batches(self) -> list[Batch]:
        """See BatchKeeper."""
        found = [one.batch for one in self._heads.values()]
        return sorted(found, key=lambda one: (one.created_at, one.batch_id))

    # --- on its way in ------------------------------------------------------------------------

    def stage(self, items: Sequence[Item]) -> None:
        """See BatchKeeper."""
        for run_id in {one.run_id for one in items}:
            mine = [one for one in items if one.run_id == run_id]
            self._stage(run_id, [layout.request(one) for one in mine], Taken(_size_of(mine)))

    def stage_results(self, run_id: str, outcomes: Sequence[Outcome]) -> None:
        """See BatchKeeper."""
        pieces = [layout.result(run_id, one.number, one.outcome) for one in outcomes]
        self._stage(run_id, pieces, Taken(results=sum(len(one.outcome) for one in outcomes)))

    def _stage(self, run_id: str, pieces: Sequence[Piece], more: Taken) -> None:
        if self._taken + more.together > self._most_bytes:
            raise errors.QueueFull(
                f"all batches may have {self._most_bytes} bytes in etcd, and {self._taken} are "
                "taken; delete some batches that have ended, or submit a smaller one"
            )
        changes: list[list[Change]] = []
        if run_id not in self._staged:
            changes.append([Put(layout.STAGED + run_id, b"")])
        self._staged[run_id] = self._staged.get(run_id, Taken()) + more
        for piece in pieces:
            changes += [[part] for part in (*piece.parts, piece.main)]
        self._change_all(changes)

    def unstage(self, run_id: str) -> None:
        """See BatchKeeper. What is a batch stays: whether `add` made it one may not be known."""
        self._writer.change(
            [CreatedAt(layout.HEADS + run_id, NEVER)],
            [Delete(layout.run(run_id), prefix=True), Delete(layout.STAGED + run_id)],
        )
        self._staged.pop(run_id, None)

    def add(self, batch: Batch) -> None:
        """See BatchKeeper."""
        head = Head(batch, self._staged.get(batch.run_id, Taken()))
        self._writer.change([], [head.put(), Delete(layout.STAGED + batch.run_id)])
        self._heads[batch.run_id] = head
        self._staged.pop(batch.run_id, None)

    # --- while it runs ------------------------------------------------------------------------

    def deployments(self, run_id: str) -> list[str]:
        """See BatchKeeper."""
        found: list[str] = []
        every = start = layout.requests(run_id)
        while entries := self._etcd.page(every, start, 1, bare=True):
            found.append(layout.deployment_of(entries[0].key))
            start = _after(layout.requests(run_id, found[-1]))
        return found

    def waiting(self, run_id: str, deployment: str, after: int, count: int) -> list[Item]:
        """See BatchKeeper."""
        under = layout.requests(run_id, deployment)
        entries = self._etcd.page(under, layout.numbered(under, after + 1), count)
        return [layout.item(run_id, one, self._content(one)) for one in entries]

    def record(self, batch: Batch, ended: Sequence[Ended], now: float) -> Batch:
        """See BatchKeeper."""
        head = self._heads.get(batch.run_id)
        if head is None or head.batch.state is not BatchState.RUNNING:
            return batch
        for start in range(0, len(ended), _RESULTS_TOGETHER):
            some = _firsts(ended[start : start + _RESULTS_TOGETHER])
            there = self._etcd.present(list(some))
            new = [one for key, one in some.items() if key in there]
            for group in self._groups(head, new):
                head = self._record(head, group, now)
        return head.batch

    def _groups(self, head: Head, ended: Sequence[Ended]) -> Iterator[list[Ended]]:
        """Results that one transaction takes, those that there is no room for as failures."""
        group: list[Ended] = []
        size, room = 0, self._most_bytes - self._taken
        for one in ended:
            room += len(one.item.request) - len(one.outcome)
            kept = one if room >= 0 else _unkept(one)
            room += len(one.outcome) - len(kept.outcome)
            first = min(len(kept.outcome), layout.PART_BYTES)
            if group and size + first > layout.PART_BYTES:
                yield group
                group, size = [], 0
            group.append(kept)
            size += first
        if group:
            yield group

    def _record(self, head: Head, ended: Sequence[Ended], now: float) -> Head:
        """Puts results in the place of their requests, in one transaction."""
        batch, changes = head.batch, list[Change]()
        for number, one in enumerate(ended, batch.finished + batch.failed):
            piece = layout.result(batch.run_id, number, one.outcome)
            self._change_all([[part] for part in piece.parts])  # which nobody reads yet
            changes += [*_without(one.item), piece.main]
        answers = sum(one.is_answer for one in ended)
        after = Head(
            batch.with_results(answers, len(ended) - answers, now),
            Taken(
                head.taken.requests - _size_of([one.item for one in ended]),
                head.taken.results + sum(len(one.outcome) for one in ended),
            ),
        )
        self._writer.change([], [*changes, after.put()])
        self._heads[batch.run_id] = after
        return after

    def cancel(self, batch: Batch) -> None:
        """See BatchKeeper."""
        head = Head(batch, replace(self._heads[batch.run_id].taken, requests=0))
        under = layout.requests(batch.run_id), layout.parts_of_requests(batch.run_id)
        self._writer.change([], [head.put(), *(Delete(one, prefix=True) for one in under)])
        self._heads[batch.run_id] = head

    # --- afterwards ---------------------------------------------------------------------------

    def results(self, run_id: str, first: int, count: int) -> list[Outcome]:
        """See BatchKeeper."""
        under = layout.results(run_id)
        entries = self._etcd.page(under, layout.numbered(under, first), count)
        return [Outcome(layout.number_of(one.key), self._content(one)) for one in entries]

    def delete(self, batch: Batch) -> None:
        """See BatchKeeper."""
        under = layout.run(batch.run_id)
        self._writer.change([], [Delete(layout.HEADS + batch.run_id), Delete(under, prefix=True)])
        self._heads.pop(batch.run_id, None)

    def close(self) -> None:
        """See BatchKeeper."""

    # --- pieces -------------------------------------------------------------------------------

    @property
    def _taken(self) -> int:
        """Bytes of all batches, and of those on their way in."""
        heads = sum(one.taken.together for one in self._heads.values())
        return heads + sum(one.together for one in self._staged.values())

    def _content(self, entry: Entry) -> bytes:
        content, more = layout.first_part(entry)
        if more is None:
            return content
        parts = self._etcd.under(more.under)[: more.count]
        return b"".join([content, *(one.value for one in parts)])

    def _change_all(self, changes: Sequence[Sequence[Change]]) -> None:
        for group in layout.together(changes, _TOGETHER):
            self._writer.change([], group)


def _firsts(ended: Sequence[Ended]) -> dict[str, Ended]:
    """By the keys of requests, the first result of each."""
    firsts: dict[str, Ended] = {}
    for one in ended:
        firsts.setdefault(layout.request_key(one.item), one)
    return firsts


def _size_of(items: Sequence[Item]) -> int:
    return sum(len(one.request) for one in items)


def _without(item: Item) -> list[Change]:
    """What removes a request."""
    removed: list[Change] = [Delete(layout.request_key(item))]
    if len(item.request) > layout.PART_BYTES:
        removed.append(Delete(layout.parts_of_request(item), prefix=True))
    return removed


def _unkept(ended: Ended) -> Ended:
    """A result that there is no room for, which ends its request all the same."""
    if not ended.is_answer:
        return ended  # which is small
    full = errors.QueueFull("its answer is lost: batches may have no more bytes in etcd")
    return Ended(ended.item, False, wire.failed(ended.item.request_id, full))


def _after(prefix: str) -> str:
    """The first key after all that begin with `prefix`, which ends in a slash."""
    return prefix[:-1] + "0"
