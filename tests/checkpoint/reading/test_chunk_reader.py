from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest

from sllm.checkpoint.reading.chunk_reader import read_checkpoint
from sllm.clock import MonotonicClock
from sllm.errors import Cancelled, CheckpointCorrupt
from sllm.node.tiers.pool import Pool
from tests.checkpoint.checkpoints import (
    assert_same,
    flip_bit,
    import_model,
    random_weights,
    tensors_in_pool,
    write_model,
)
from tests.checkpoint.plans import CHUNK, never


@pytest.fixture
def pool() -> Iterator[Pool]:
    pool = Pool(16 * CHUNK, CHUNK)
    yield pool
    pool.close()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


class Loaded:
    """A checkpoint on disk, and places for it in the pool."""

    def __init__(self, directory: Path, pool: Pool, threads: ThreadPoolExecutor) -> None:
        self.directory = directory / "checkpoint"
        self.manifest = import_model(write_model(directory / "source"), self.directory)
        self.pool = pool
        self.places = ((9, 3, 4, 5, 1, 0),)
        self.progress: list[tuple[int, int]] = []
        self.cancelled = never
        self.verify = True
        self._threads = threads

    def read(self) -> float:
        return read_checkpoint(
            self.directory,
            self.manifest,
            lambda partition, index: self.pool.view(self.places[partition][index]),
            threads=self._threads,
            clock=MonotonicClock(),
            progress=lambda loaded, total: self.progress.append((loaded, total)),
            cancelled=lambda: self.cancelled(),
            verify=self.verify,
        )


@pytest.fixture
def loaded(tmp_path: Path, pool: Pool, threads: ThreadPoolExecutor) -> Loaded:
    return Loaded(tmp_path, pool, threads)


def test_chunks_land_where_they_were_told_to(loaded: Loaded) -> None:
    began = MonotonicClock().now()
    assert began <= loaded.read() <= MonotonicClock().now()
    assert_same(tensors_in_pool(loaded.manifest, loaded.pool, loaded.places), random_weights())


def test_progress_rises_to_the_total(loaded: Loaded) -> None:
    loaded.read()
    size = loaded.manifest.size_bytes
    assert loaded.progress == sorted(loaded.progress)
    assert loaded.progress[-1] == (size, size)
    assert len(loaded.progress) == 6


@pytest.mark.parametrize("offset", [0, CHUNK - 1, CHUNK, 3 * CHUNK + 17])
def test_a_flipped_bit_is_found_with_file_and_offset(loaded: Loaded, offset: int) -> None:
    path = loaded.directory / "partition-00000.bin"
    flip_bit(path, offset)
    with pytest.raises(CheckpointCorrupt) as caught:
        loaded.read()
    chunk_start = offset // CHUNK * CHUNK
    assert caught.value.metadata == {"file": str(path), "offset": str(chunk_start)}


def test_digests_are_not_looked_at_where_they_need_not_be(loaded: Loaded) -> None:
    flip_bit(loaded.directory / "partition-00000.bin", 17)
    loaded.verify = False
    loaded.read()


def test_a_partition_cut_short_is_found_with_file_and_offset(loaded: Loaded) -> None:
    path = loaded.directory / "partition-00000.bin"
    path.write_bytes(path.read_bytes()[: 2 * CHUNK + 5])
    with pytest.raises(CheckpointCorrupt, match="ends here") as caught:
        loaded.read()
    assert caught.value.metadata["file"] == str(path)


def test_a_missing_partition_is_named(loaded: Loaded) -> None:
    (loaded.directory / "partition-00000.bin").unlink()
    with pytest.raises(CheckpointCorrupt, match=r"partition-00000\.bin: cannot be opened"):
        loaded.read()


def test_a_cancelled_read_stops_between_chunks(loaded: Loaded) -> None:
    asked = count()
    loaded.cancelled = lambda: next(asked) >= 2
    with pytest.raises(Cancelled):
        loaded.read()
    assert len(loaded.progress) <= 2
