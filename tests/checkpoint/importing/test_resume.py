"""Imports that broke off, and go on."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock

import pytest

from sllm.checkpoint.format.manifest import Manifest
from sllm.checkpoint.format.manifest_file import read_manifest
from sllm.checkpoint.importing.chunk_workers import ChunkWorkers
from sllm.checkpoint.importing.import_plan import ImportPlan, plan_import
from sllm.checkpoint.importing.importer import import_checkpoint
from sllm.checkpoint.importing.journal import JOURNAL_FILE
from sllm.checkpoint.sources.local_reader import LocalReader
from sllm.checkpoint.sources.sources import LocalSource, inspect
from sllm.errors import Cancelled, CheckpointCorrupt
from tests.checkpoint.checkpoints import (
    assert_same,
    flip_bit,
    import_model,
    random_weights,
    tensors_on_disk,
    write_model,
)
from tests.checkpoint.plans import CHUNK, never

PARTITION = "partition-00000.bin"


@dataclass
class CountingSource:
    """A directory whose reads are counted."""

    local: LocalSource
    read_bytes: int = 0
    _lock: Lock = field(default_factory=Lock)

    @property
    def url(self) -> str:
        return self.local.url

    def current_fingerprint(self) -> str:
        return self.local.current_fingerprint()

    def open(self, weights: Sequence[Path], cancelled: Callable[[], bool]) -> "CountingReader":
        return CountingReader(self, weights)

    def count(self, size: int) -> None:
        with self._lock:
            self.read_bytes += size


class CountingReader(LocalReader):
    def __init__(self, source: CountingSource, paths: Sequence[Path]) -> None:
        super().__init__(paths, source.local.settled)
        self._source = source

    def read_into(self, memory: memoryview, file: Path, offset: int) -> None:
        super().read_into(memory, file, offset)
        self._source.count(len(memory))


def counted(directory: Path, dtype: str | None = None) -> tuple[ImportPlan, CountingSource]:
    source = CountingSource(LocalSource(directory))
    files = replace(inspect(source.local), origin=source)
    return plan_import(files, dtype), source


def resume(plan: ImportPlan, out: Path, stop_after: int | None = None) -> Manifest:
    """Goes on, or gives up once that many bytes have been read."""
    read = 0

    def progress(done: int, total: int) -> None:
        nonlocal read
        read = done

    with ChunkWorkers(CHUNK, threads=1) as workers:
        return import_checkpoint(
            plan,
            out,
            chunk_bytes=CHUNK,
            progress=progress,
            cancelled=never if stop_after is None else lambda: read >= stop_after,
            workers=workers,
            resume=True,
        )


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("stop_after", [1, 20_000, 45_000])
def test_what_is_there_is_not_read_again(
    tmp_path: Path, stop_after: int, dtype: str | None
) -> None:
    plan, first = counted(write_model(tmp_path / "source"), dtype)
    with pytest.raises(Cancelled):
        resume(plan, tmp_path / "out", stop_after)
    chunks_done = len((tmp_path / "out" / JOURNAL_FILE).read_text().splitlines()) - 1
    plan, second = counted(tmp_path / "source", dtype)
    manifest = resume(plan, tmp_path / "out")
    most = first.read_bytes + second.read_bytes
    assert most <= plan.files.size_bytes + 2 * CHUNK, "more than the chunk in hand was read twice"
    assert second.read_bytes < plan.files.size_bytes or not chunks_done
    assert manifest == import_model(tmp_path / "source", tmp_path / "again", dtype)
    assert read_manifest(tmp_path / "out") == manifest
    assert not (tmp_path / "out" / JOURNAL_FILE).exists()


def interrupted(tmp_path: Path) -> Path:
    plan, _ = counted(write_model(tmp_path / "source"))
    with pytest.raises(Cancelled):
        resume(plan, tmp_path / "out", 30_000)
    return tmp_path / "out"


def assert_resumes(tmp_path: Path, out: Path) -> int:
    plan, source = counted(tmp_path / "source")
    manifest = resume(plan, out)
    assert_same(tensors_on_disk(manifest, out), random_weights())
    return source.read_bytes


def test_a_chunk_that_is_not_what_was_written_is_read_anew(tmp_path: Path) -> None:
    out = interrupted(tmp_path)
    flip_bit(out / PARTITION, CHUNK + 1)
    assert_resumes(tmp_path, out)


def test_a_journal_that_says_too_much_is_not_believed(tmp_path: Path) -> None:
    out = interrupted(tmp_path)
    with (out / JOURNAL_FILE).open("a") as journal:
        journal.write(json.dumps({"chunk": [0, 5], "digest": "0" * 32}) + "\n")
    assert_resumes(tmp_path, out)


@pytest.mark.parametrize("tail", ['{"chunk": [0, 5], "dig', "[]\n", "\0\0\0", '{"chunk": 7}\n'])
def test_a_journal_that_was_cut_short_counts_up_to_there(tmp_path: Path, tail: str) -> None:
    out = interrupted(tmp_path)
    with (out / JOURNAL_FILE).open("a") as journal:
        journal.write(tail)
    assert assert_resumes(tmp_path, out) < 30_000


@pytest.mark.parametrize("content", ["", "{}\n", "nonsense", '{"plan": "another"}\n'])
def test_a_journal_of_something_else_counts_for_nothing(tmp_path: Path, content: str) -> None:
    out = interrupted(tmp_path)
    (out / JOURNAL_FILE).write_text(content)
    assert assert_resumes(tmp_path, out) > 47_000


def test_another_plan_begins_anew(tmp_path: Path) -> None:
    out = interrupted(tmp_path)
    write_model(tmp_path / "source", seed=1)
    plan, _ = counted(tmp_path / "source")
    assert_same(tensors_on_disk(resume(plan, out), out), random_weights(1))


def test_what_a_changed_source_has_left_is_worthless(tmp_path: Path) -> None:
    plan, _ = counted(write_model(tmp_path / "source"))
    write_model(tmp_path / "source", seed=1)
    with pytest.raises(CheckpointCorrupt, match="changed while"):
        resume(plan, tmp_path / "out")
    assert not (tmp_path / "out").exists()
