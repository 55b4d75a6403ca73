"""The store of kept pages, over small tiers and a real directory."""

import asyncio
import errno
import random
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import xxhash

from sllm.node.kept import files
from sllm.node.kept.contents import OWN_CHUNKS
from sllm.node.kept.kept_pages import KeptPages
from sllm.node.kept.prefixes import NamedPages
from sllm.node.kept.records import KeptBudget, PageLease, PageWish
from sllm.node.tiers.types import Tier
from tests.checkpoint.plans import CHUNK
from tests.node.stores import MODEL_CHUNKS, Bench
from tests.support import assert_eventually

PAGE_BYTES = CHUNK // 2 - 100
"""So that a chunk has two of them."""
BUDGET = KeptBudget(12 * CHUNK, 16 * CHUNK)


def key_of(number: int) -> bytes:
    return xxhash.xxh3_128_digest(f"key {number}".encode())


def content_of(key: bytes) -> bytes:
    return (key * (PAGE_BYTES // len(key) + 1))[:PAGE_BYTES]


class KeptBench(Bench):
    """A store that keeps pages, and a worker's part."""

    budget = BUDGET

    @property
    def kept(self) -> KeptPages:
        return self.store.kept

    def write(self, keys: Sequence[bytes], space: str = "a", per_token: float = 1.0) -> int:
        """Offers pages and writes those for which there is room; gives how many."""
        lease = self.kept.make_room(space, PAGE_BYTES, keys, per_token)
        self.kept.keep(
            lease, [self.fill(place.chunk, place.offset, place.key) for place in lease.places]
        )
        return len(lease.places)

    def fill(self, chunk: int, offset: int, key: bytes) -> bytes:
        content = content_of(key)
        self.pool.view(chunk)[offset : offset + PAGE_BYTES] = content
        return xxhash.xxh3_128_digest(content)

    async def find(self, keys: Sequence[bytes], per_token: float | None = 1.0) -> PageLease:
        """Finds pages; none of them is another one."""
        lease = await self.kept.find(PageWish(tuple(keys), 16, per_token))
        for place, key in zip(lease.places, keys, strict=False):
            page = self.pool.view(place.chunk)[place.offset : place.offset + PAGE_BYTES]
            assert place.key == key
            assert bytes(page) == content_of(key)
            assert place.digest == xxhash.xxh3_128_digest(page)
        return lease

    async def read(self, keys: Sequence[bytes], per_token: float | None = 1.0) -> list[Tier]:
        """Finds pages, and gives them back: where they were."""
        lease = await self.find(keys, per_token)
        self.kept.release(lease)
        return [place.tier for place in lease.places]

    async def until_stored(self) -> None:
        """Returns when all that was written is on SSD."""
        contents = self.kept._contents
        await assert_eventually(
            lambda: all(one.stored == one.used for one in contents.segments.values())
        )


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[KeptBench]:
    bench = KeptBench(tmp_path)
    await bench.open()
    yield bench
    await bench.close()


KEYS = [key_of(number) for number in range(20)]


def directories(root: Path) -> list[Path]:
    """Of the segments on SSD."""
    return list(root.glob("tier/.kept-*"))


async def test_pages_are_found_up_to_the_first_that_is_missing(bench: KeptBench) -> None:
    assert await bench.read(KEYS) == []
    assert bench.write(KEYS[:6]) == 6
    assert await bench.read(KEYS) == [Tier.DRAM] * 6
    assert bench.write([*KEYS[:6], *KEYS[7:9]]) == 2, "those that are here are not written again"
    assert await bench.read(KEYS) == [Tier.DRAM] * 6
    assert await bench.read(KEYS[7:]) == [Tier.DRAM] * 2
    assert bench.write(KEYS[6:7]) == 1
    assert await bench.read(KEYS) == [Tier.DRAM] * 9


async def test_what_was_not_written_is_not_found(bench: KeptBench) -> None:
    lease = bench.kept.make_room("a", PAGE_BYTES, KEYS[:3], None)
    assert await bench.read(KEYS) == []
    bench.kept.keep(lease, ())
    bench.kept.keep(lease, [b"late"])
    assert await bench.read(KEYS) == []
    lease = bench.kept.make_room("a", PAGE_BYTES, KEYS[:3], None)
    digest = bench.fill(lease.places[0].chunk, lease.places[0].offset, KEYS[0])
    bench.kept.keep(lease, [digest, b"", b""])
    assert await bench.read(KEYS) == [Tier.DRAM]


async def test_what_does_not_come_takes_no_room(bench: KeptBench) -> None:
    assert bench.write(KEYS[:3]) == 3
    for _ in range(40):
        first = bench.kept.make_room("a", PAGE_BYTES, KEYS[3:6], None)
        bench.kept.keep(bench.kept.make_room("a", PAGE_BYTES, KEYS[6:9], None), ())
        bench.kept.keep(first, ())
    assert await bench.read(KEYS) == [Tier.DRAM] * 3
    assert sum(one.used for one in bench.kept._contents.segments.values()) == 3


async def test_they_are_within_their_bounds_and_the_least_missed_go(bench: KeptBench) -> None:
    keys = [key_of(number) for number in range(100)]
    for begin in range(0, 100, 4):
        assert bench.write(keys[begin : begin + 4]) == 4
        await bench.read(keys[:4])  # used again and again
        bench.store.check_integrity()
    dram, ssd = bench.kept._dram.ledger, bench.kept._ssd.ledger
    assert dram.recomputable_bytes <= BUDGET.dram_bytes
    await bench.until_stored()
    assert ssd.recomputable_bytes <= BUDGET.ssd_bytes
    assert await bench.read(keys[:4]) == [Tier.DRAM] * 4


async def test_leased_pages_stay(bench: KeptBench) -> None:
    bench.write(KEYS[:4])
    lease = await bench.find(KEYS[:4])
    for number in range(100, 140, 4):
        bench.write([key_of(number + page) for page in range(4)])
    for place in lease.places:
        page = bench.pool.view(place.chunk)[place.offset : place.offset + PAGE_BYTES]
        assert bytes(page) == content_of(place.key)
    bench.kept.release(lease)


async def test_all_that_is_leased_leaves_no_room(bench: KeptBench) -> None:
    lease = bench.kept.make_room("a", PAGE_BYTES, [key_of(n) for n in range(100)], None)
    assert len(lease.places) == 24, "twelve chunks of two"
    assert not bench.kept.make_room("b", PAGE_BYTES, KEYS, None).places
    bench.kept.keep(lease, ())
    assert bench.write(KEYS, "b") == 20


async def test_pages_larger_than_a_chunk_are_not_kept(bench: KeptBench) -> None:
    assert not bench.kept.make_room("a", CHUNK + 1, KEYS, None).places


async def test_weights_come_first(tmp_path: Path) -> None:
    bench = KeptBench(tmp_path)
    await bench.open(ssd_models=12)
    bench.write(KEYS)
    await bench.until_stored()
    for seed in range(8):
        await bench.leave(seed, Tier.DRAM)
    assert len(bench.on(Tier.DRAM)) == 8, "no weights have gone for pages"
    # A few chunks are theirs although idle weights have to go, and then what those have left.
    assert await bench.read(KEYS) == [Tier.SSD] * 2 * MODEL_CHUNKS
    assert len(bench.on(Tier.DRAM)) == 7
    assert MODEL_CHUNKS > OWN_CHUNKS
    await bench.close()


async def test_they_come_back_from_ssd(tmp_path: Path) -> None:
    bench = KeptBench(tmp_path)
    await bench.open()
    bench.write(KEYS, per_token=0.5)
    await bench.close()
    await bench.open()
    assert await bench.read(KEYS, None) == [Tier.SSD] * 20
    assert await bench.read(KEYS, None) == [Tier.DRAM] * 20
    assert bench.write([key_of(100)]) == 1
    await bench.close()
    await bench.open()
    assert await bench.read([*KEYS, key_of(100)], None) == [Tier.SSD] * 21
    await bench.close()


async def test_a_node_that_keeps_nothing_clears_the_disk(tmp_path: Path) -> None:
    bench = KeptBench(tmp_path)
    await bench.open()
    bench.write(KEYS)
    await bench.close()
    assert directories(tmp_path)
    bench.budget = KeptBudget()
    await bench.open()
    assert not bench.kept.is_on
    assert not directories(tmp_path)
    await bench.close()


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def empty(place: Path) -> None:
    for file in place.iterdir():
        file.unlink()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "no pages": lambda place: (place / "pages").unlink(),
    "pages cut": lambda place: cut(place / "pages"),
    "no index": lambda place: (place / "index.json").unlink(),
    "index cut": lambda place: cut(place / "index.json"),
    "index of another kind": lambda place: (place / "index.json").write_text("[]"),
    "index of a later version": lambda place: (place / "index.json").write_text('{"format": 2}'),
    "an index that lies": lambda place: (place / "index.json").write_text(
        (place / "index.json").read_text().replace('"stored": 2', '"stored": 2000000')
    ),
    "nothing but a directory": empty,
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("is_running", [False, True])
async def test_what_is_damaged_on_ssd_is_not_found(
    tmp_path: Path, damage: str, is_running: bool
) -> None:
    bench = KeptBench(tmp_path)
    await bench.open()
    bench.write(KEYS[:4])
    await bench.close()
    if is_running:
        await bench.open()
    (place, _) = directories(tmp_path)
    DAMAGE[damage](place)
    if not is_running:
        await bench.open()
    found = await bench.read(KEYS[:2]), await bench.read(KEYS[2:4])
    whole = 2 if is_running and "index" in damage else 1  # that is read when the node starts
    assert sum(one == [Tier.SSD] * 2 for one in found) == whole
    assert all(one in ([], [Tier.SSD] * 2) for one in found)
    bench.write(KEYS[:4])
    assert await bench.read(KEYS) == [Tier.DRAM] * 4
    await bench.close()


async def test_a_segment_with_a_bad_page_goes(bench: KeptBench) -> None:
    bench.write(KEYS[:8])
    await bench.until_stored()
    lease = await bench.find(KEYS)
    bench.kept.release(lease, bad=[5])
    assert await bench.read(KEYS) == [Tier.DRAM] * 4, "what is in the others stays"
    assert await bench.read(KEYS[4:]) == []
    assert await bench.read(KEYS[6:]) == [Tier.DRAM] * 2
    await assert_eventually(lambda: len(directories(bench.directory)) == 3)


async def test_a_find_that_is_cancelled_leases_nothing(bench: KeptBench) -> None:
    bench.write(KEYS[:8])
    await bench.until_stored()
    for name in list(bench.kept._dram.kept)[1:]:
        bench.kept._dram.drop(name)
    finding = asyncio.create_task(bench.find(KEYS))
    await asyncio.sleep(0)
    finding.cancel()
    await asyncio.gather(finding, return_exceptions=True)
    await assert_eventually(
        lambda: not any(one.holding.leases for one in bench.kept._dram.kept.values())
    )


async def test_whatever_comes_and_goes_no_page_is_another(tmp_path: Path) -> None:
    """Writers, readers, weights and restarts, in any order; the books are right throughout."""
    chosen = random.Random(5)
    bench = KeptBench(tmp_path)
    await bench.open(pool_models=2)
    open_leases: list[PageLease] = []
    for _ in range(300):
        keys = [key_of(chosen.randrange(12) * 8 + page) for page in range(chosen.randrange(1, 9))]
        match chosen.randrange(8):
            case 0 | 1 | 2:
                bench.write(keys, chosen.choice("ab"))
            case 3 | 4:
                open_leases.append(await bench.find(keys))
            case 5 if open_leases:
                lease = open_leases.pop(chosen.randrange(len(open_leases)))
                bad = [0] if lease.places and chosen.random() < 0.2 else []
                bench.kept.release(lease, bad)
            case 6 if chosen.random() < 0.2:
                for lease in open_leases:
                    bench.kept.release(lease)
                open_leases.clear()
                await bench.close()
                await bench.open(pool_models=2)
            case _:
                lease = bench.kept.make_room("c", PAGE_BYTES, keys, None)
                bench.kept.keep(lease, [])
        bench.store.check_integrity()
    for lease in open_leases:
        bench.kept.release(lease)
    await bench.close()


@contextmanager
def held_up(monkeypatch: pytest.MonkeyPatch, name: str) -> Iterator[threading.Event]:
    """Has what a thread does with a segment's files begin once the block ends; says it is asked."""
    real, asked, go_on = getattr(files, name), threading.Event(), threading.Event()

    def late(*args: Any) -> None:
        asked.set()
        go_on.wait()
        real(*args)

    monkeypatch.setattr(files, name, late)
    try:
        yield asked
    finally:
        monkeypatch.setattr(files, name, real)
        go_on.set()


async def test_what_is_dropped_while_it_is_written_leaves_nothing_on_ssd(
    bench: KeptBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with held_up(monkeypatch, "write") as asked:
        bench.write(KEYS[:2])
        await assert_eventually(asked.is_set)
        bench.kept.release(await bench.find(KEYS[:2]), bad=[0])
    bench.write(KEYS[2:4])
    await bench.until_stored()
    (kept,) = bench.kept._contents.segments
    await assert_eventually(lambda: [one.name for one in directories(bench.directory)] == [kept])


async def test_what_is_read_from_ssd_does_not_go_from_there_meanwhile(
    bench: KeptBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.write(KEYS[:2])
    await bench.until_stored()
    (name,) = bench.kept._dram.kept
    bench.kept._dram.drop(name)
    with held_up(monkeypatch, "read") as asked:
        finding = asyncio.create_task(bench.read(KEYS[:2]))
        await assert_eventually(asked.is_set)
        ledger = bench.kept._ssd.ledger
        assert ledger.least_missed_recomputable is None, "it would go for others"
    assert await finding == [Tier.SSD] * 2
    assert ledger.least_missed_recomputable == name, "it is held for ever"


async def test_a_disk_that_takes_nothing_has_no_segments_in_its_books(
    bench: KeptBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EROFS, "read-only")

    monkeypatch.setattr(files, "write", refuse)
    bench.write(KEYS[:4])
    await assert_eventually(lambda: bool(bench.kept._ssd.problem))
    await assert_eventually(lambda: not bench.kept._ssd.ledger.recomputable_bytes)
    assert await bench.read(KEYS[:4]) == [Tier.DRAM] * 4
    monkeypatch.undo()
    bench.write(KEYS[4:6])
    await bench.until_stored()
    assert len(directories(bench.directory)) == 3


async def test_prompts_are_told_of_by_what_their_pages_save(bench: KeptBench) -> None:
    prefixes = bench.kept.prefixes
    named = [NamedPages(name, KEYS[name], name + 1, 16) for name in range(3)]
    prefixes.note(named)
    assert prefixes.saved() == {}
    bench.write(KEYS[:2], per_token=1.0)
    await assert_eventually(lambda: bool(prefixes.saved()))
    assert prefixes.saved() == {0: 16.0, 1: 32.0}, "of seconds, two digits"
