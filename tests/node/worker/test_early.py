"""Workers whose weights arrive while their engine runs."""

import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest
import pytest_asyncio

from sllm.node.instances.worker_messages import first_use
from sllm.node.instances.zygote_client import Zygote
from sllm.node.tiers.first_use import FirstUse, check, chunk_order
from sllm.node.tiers.pool import Pool
from tests.node.worker.clients import WorkerClient, fork, rid
from tests.node.worker.staging import CHUNK_BYTES, Staged, stage, stage_ready
from tests.support import assert_eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEXT = "Once upon a time"
TOKENS = 8


class Withheld:
    """A checkpoint in the pool whose chunks are there when they are given; rubbish lies there."""

    def __init__(self, staged: Staged, pool: Pool) -> None:
        self.staged = staged
        self._views = [pool.view(chunk) for chunks in staged.chunks for chunk in chunks]
        self._content = [bytes(view) for view in self._views]

    @property
    def every(self) -> range:
        return range(len(self._views))

    def withhold(self) -> None:
        for view in self._views:
            view[:] = b"\x7f" * len(view)

    def give(self, chunks: Sequence[int]) -> None:
        for chunk in chunks:
            self._views[chunk][:] = self._content[chunk]

    def close(self) -> None:
        self.give(self.every)
        for view in self._views:
            view.release()


@pytest.fixture(params=["tiny-gpt2", "tiny-llama", "tiny-llama, ready-made"])
def withheld(
    request: pytest.FixtureRequest, pool: Pool, models: Path, tmp_path: Path
) -> Iterator[Withheld]:
    name, _, is_ready = request.param.partition(", ")
    staged = stage(models / name, tmp_path / "staged", pool)
    if is_ready:
        for chunks in staged.chunks:
            pool.free(chunks)
        staged = stage_ready(staged, tmp_path / "ready", pool)
    withheld = Withheld(staged, pool)
    yield withheld
    withheld.close()
    for chunks in staged.chunks:
        pool.free(chunks)


def read_chunks(pid: int, first_address: int, count: int) -> set[int]:
    """Chunks of a worker's mapping of which it has read anything."""
    read, at = set[int](), 0
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        head = line.split(maxsplit=1)[0]
        if "-" in head and not head.endswith(":"):
            begin, end = (int(part, 16) for part in head.split("-"))
            at, size = begin - first_address, end - begin
        elif head == "Rss:" and 0 <= at < count * CHUNK_BYTES and int(line.split()[1]):
            read.update(range(at // CHUNK_BYTES, (at + size) // CHUNK_BYTES))
    return read


def chunks_of_layer(staged: Staged, layer: int) -> set[int]:
    return {
        chunk
        for one in staged.manifest.tensors
        if f".{layer}." in one.name
        for chunk in range(one.offset // CHUNK_BYTES, -(-(one.offset + one.size) // CHUNK_BYTES))
    }


async def whole(worker: WorkerClient, staged: Staged) -> tuple[list[int], FirstUse]:
    """What a worker generates that has all, and what it tells of it."""
    await worker.prepare(staged.directory)
    await worker.attach_and_run(staged, tell_first_use=True)
    done = await worker.generate(rid(), text=TEXT, max_tokens=TOKENS)
    assert worker.first_use is not None
    use = first_use(worker.first_use)
    check(use, staged.manifest)
    return done.tokens, use


@pytest_asyncio.fixture(loop_scope="module")
async def other(zygote: Zygote, tmp_path: Path) -> AsyncIterator[WorkerClient]:
    """One more worker without a model."""
    worker = await fork(zygote, tmp_path / "other.sock")
    yield worker
    await worker.close()
    worker.forked.process.send(signal.SIGKILL)
    await worker.forked.exited


async def test_a_prefill_goes_on_as_layers_arrive(
    blank: WorkerClient, other: WorkerClient, withheld: Withheld
) -> None:
    expected, use = await whole(other, withheld.staged)
    order = chunk_order(withheld.staged.manifest, use).chunks
    assert use.at_once == 0
    withheld.withhold()
    await blank.prepare(withheld.staged.directory)
    await blank.attach_and_run(withheld.staged, withheld.every)
    followed = blank.submit(rid(), text=TEXT, max_tokens=TOKENS)
    first, second = (chunks_of_layer(withheld.staged, layer) for layer in (0, 1))
    given, last = order[: max(map(order.index, second)) + 1], order[-1]
    withheld.give(given)
    blank.arrived(*given)
    address = (await blank.status()).mapping_address

    def has_entered_the_second_layer() -> bool:
        return bool((second - first) & read_chunks(blank.pid, address, len(order)))

    await assert_eventually(has_entered_the_second_layer, 30.0)
    rest = order[len(given) : -1]
    withheld.give(rest)
    blank.arrived(*rest)
    assert (await blank.status()).counters.generated_tokens == 0
    withheld.give([last])
    blank.arrived(last)
    await blank.until(lambda: followed.ended)
    assert followed.tokens == expected
    again = await blank.generate(rid(), text=TEXT, max_tokens=TOKENS)
    assert again.tokens == expected


async def test_a_worker_that_waits_for_weights_ends_when_it_is_told(
    blank: WorkerClient, withheld: Withheld
) -> None:
    withheld.withhold()
    await blank.prepare(withheld.staged.directory)
    await blank.attach_and_run(withheld.staged, withheld.every)
    blank.submit(rid(), text=TEXT, max_tokens=TOKENS)

    async def is_running() -> bool:
        return (await blank.status()).counters.steps > 0

    await assert_eventually(is_running)
    blank.forked.process.send(signal.SIGTERM)
    exited = await blank.forked.exited
    assert exited.status == 0


async def test_chunks_that_nobody_waits_for_end_the_worker(
    blank: WorkerClient, withheld: Withheld
) -> None:
    await blank.prepare(withheld.staged.directory)
    await blank.attach_and_run(withheld.staged)
    blank.arrived(0)
    assert (await blank.forked.exited).status != 0
