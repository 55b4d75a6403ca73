import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sllm.checkpoint.format.manifest_file import read_manifest
from sllm.errors import InvalidArgument
from sllm.node.tiers.checkpoints import SourceRecord
from sllm.node.tiers.ssd import SsdCopy, SsdTier
from sllm.node.tiers.ssd_files import delete
from tests.checkpoint.checkpoints import (
    assert_same,
    flip_bit,
    import_model,
    random_weights,
    tensors_on_disk,
    write_model,
)
from tests.checkpoint.plans import CHUNK
from tests.processes import started
from tests.support import wait_until

BUDGET = 1 << 20


class Tiers:
    """Opens the tier of one directory, and closes what was opened."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._open: SsdTier | None = None

    def open(self, budget: int = BUDGET, chunk_bytes: int = CHUNK) -> SsdTier:
        """Closes the tier that is open, and opens it anew."""
        self.close()
        self._open = SsdTier.open(self.directory, budget, chunk_bytes=chunk_bytes)
        self._open.check_integrity()
        return self._open

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
        self._open = None


@pytest.fixture
def tiers(tmp_path: Path) -> Iterator[Tiers]:
    tiers = Tiers(tmp_path / "tier")
    yield tiers
    tiers.close()


def land(tier: SsdTier, seed: int = 0) -> SsdCopy:
    source = write_model(tier.directory.parent / f"source{seed}", seed=seed)
    with tier.half_written(record_of(seed)) as written:
        copy = tier.land(written, import_model(source, written))
    tier.record_source(copy, record_of(seed))
    tier.check_integrity()
    return copy


def record_of(seed: int, fingerprint: str = "f") -> SourceRecord:
    return SourceRecord(f"file:///source{seed}", fingerprint, None)


def test_what_landed_is_found_by_the_next_process(tiers: Tiers) -> None:
    digest = land(tiers.open()).manifest.digest
    copy = tiers.open().find(record_of(0))
    assert copy is not None
    assert copy.manifest.digest == digest
    assert copy.urls == ("file:///source0",)
    assert_same(tensors_on_disk(copy.manifest, copy.directory), random_weights())


def test_the_order_of_use_outlives_the_process(tiers: Tiers) -> None:
    tier = tiers.open()
    first, second, third = (land(tier, seed) for seed in range(3))
    for copy, time in [(second, 1), (first, 2), (third, 3)]:
        os.utime(copy.directory, (time, time))
    tier = tiers.open()
    (victim,) = tier.ledger.reserve(BUDGET - 2 * first.holding.size - 1)
    assert victim == second.manifest.digest
    tier.detach(victim)


def test_a_lower_budget_is_kept_from_the_start(tiers: Tiers) -> None:
    tier = tiers.open()
    old, new = land(tier, 0), land(tier, 1)
    os.utime(old.directory, (1, 1))
    tier = tiers.open(budget=new.holding.size + 10)
    assert set(tier.copies) == {new.manifest.digest}


def test_leftovers_of_a_kill_are_removed_and_strangers_left_alone(tiers: Tiers) -> None:
    tier = tiers.open()
    copy = land(tier)
    (tier.directory / ".staged-1").mkdir()
    tier.ledger.remove(copy.manifest.digest)
    tier.detach(copy.manifest.digest)
    (tier.directory / "notes").mkdir()
    (tier.directory / "notes" / "kept").touch()
    assert tiers.open().copies == {}
    assert {path.name for path in tiers.directory.iterdir()} == {".lock", "notes"}


@pytest.mark.parametrize("name", ["manifest.json", "partition-00000.bin"])
def test_an_incomplete_copy_is_dropped(tiers: Tiers, name: str) -> None:
    (land(tiers.open()).directory / name).unlink()
    assert tiers.open().copies == {}
    assert {path.name for path in tiers.directory.iterdir()} == {".lock"}


def test_a_copy_under_another_name_is_dropped(tiers: Tiers) -> None:
    copy = land(tiers.open())
    copy.directory.rename(tiers.directory / ("0" * 32))
    assert tiers.open().copies == {}


def test_a_copy_in_chunks_of_another_size_is_dropped(tiers: Tiers) -> None:
    land(tiers.open())
    assert tiers.open(chunk_bytes=2 * CHUNK).copies == {}


@pytest.mark.parametrize("content", [b"", b"{}", b'[{"url": 1}]', b"[5]"])
def test_a_copy_whose_sources_are_lost_stays(tiers: Tiers, content: bytes) -> None:
    copy = land(tiers.open())
    (copy.directory / ".sources.json").write_bytes(content)
    tier = tiers.open()
    assert tier.copies[copy.manifest.digest].sources == []
    assert tier.find(record_of(0)) is None


def test_the_same_content_lands_once(tiers: Tiers) -> None:
    tier = tiers.open()
    first = land(tier)
    with tier.half_written(record_of(1)) as written:
        manifest = import_model(tier.directory.parent / "source0", written)
        assert tier.land(written, manifest) is first
    (removed,) = tier.take_removed()
    assert removed.exists()
    assert not tier.take_removed()
    delete(removed)
    tier.check_integrity()


def leave_half(tier: SsdTier, seed: int) -> Path:
    with tier.half_written(record_of(seed)) as written:
        import_model(write_model(tier.directory.parent / f"source{seed}", seed=seed), written)
    tier.check_integrity()
    return written


def test_what_is_half_written_is_kept_for_the_next(tiers: Tiers) -> None:
    written = leave_half(tiers.open(), 0)
    tier = tiers.open()
    assert tier.ledger.used > 40_000
    with tier.half_written(record_of(0)) as again:
        assert again == written
        assert again.exists()
        assert not tier.ledger.used
    tier.check_integrity()


def test_what_is_half_written_goes_first_when_room_is_needed(tiers: Tiers) -> None:
    tier = tiers.open()
    written, copy = leave_half(tier, 0), land(tier, 1)
    tier = tiers.open()
    (victim,) = tier.ledger.reserve(BUDGET - copy.holding.size)
    assert victim == written.name
    tier.detach(victim)
    (removed,) = tier.take_removed()
    assert removed.exists()
    assert not written.exists()
    assert {path.name for path in tiers.directory.glob(".partial-*")} == set()


def test_what_nobody_goes_on_with_is_removed_in_the_end(tiers: Tiers) -> None:
    written = leave_half(tiers.open(), 0)
    assert tiers.open().ledger.used
    for path in written.iterdir():
        os.utime(path, (1, 1))
    assert not tiers.open().ledger.used
    assert not written.exists()


def test_a_source_leads_to_one_copy(tiers: Tiers) -> None:
    tier = tiers.open()
    old, new = land(tier, 0), land(tier, 1)
    changed = record_of(0, fingerprint="g")
    tier.record_source(new, changed)
    for now in (tier, tiers.open()):
        found = now.find(changed)
        assert found is not None
        assert found.manifest == new.manifest
        assert now.copies[old.manifest.digest].urls == ()
        assert now.last_known("file:///source0", None) == changed
        assert now.last_known("file:///source0", "float32") is None


def test_a_directory_serves_one_process(tiers: Tiers) -> None:
    tiers.open()
    with pytest.raises(InvalidArgument, match="another node agent"):
        SsdTier.open(tiers.directory, BUDGET)


def test_a_flipped_bit_does_not_keep_the_tier_from_opening(tiers: Tiers) -> None:
    copy = land(tiers.open())
    flip_bit(copy.directory / "partition-00000.bin", 100)
    assert set(tiers.open().copies) == {copy.manifest.digest}


IMPORT_FOREVER = """
import sys
from pathlib import Path
from tests.node.tiers.test_ssd import BUDGET, SsdTier, import_model, record_of

source, tier = Path(sys.argv[1]), SsdTier.open(Path(sys.argv[2]), BUDGET)
print("ready", flush=True)
while True:
    with tier.half_written(record_of(0)) as written:
        copy = tier.land(written, import_model(source, written))
    tier.record_source(copy, record_of(0))
    tier.ledger.remove(copy.manifest.digest)
    tier.detach(copy.manifest.digest)
"""


def test_a_kill_at_any_moment_leaves_whole_copies_or_none(tiers: Tiers, tmp_path: Path) -> None:
    source = write_model(tmp_path / "source")
    command = [sys.executable, "-c", IMPORT_FOREVER, str(source), str(tiers.directory)]
    with started(command) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        wait_until(lambda: len(list(tiers.directory.iterdir())) > 10)
        process.send_signal(signal.SIGKILL)
    for copy in tiers.open().copies.values():
        assert read_manifest(copy.directory) == copy.manifest
        assert_same(tensors_on_disk(copy.manifest, copy.directory), random_weights())
    assert not list(tiers.directory.glob(".removed-*"))
