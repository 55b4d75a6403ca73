"""Turns a source into a checkpoint, streaming: the model is never held in memory."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from itertools import groupby, repeat
from pathlib import Path

from sllm.checkpoint.files.direct_io import DirectFile, flush_directory
from sllm.checkpoint.files.memory import ChunkMemory
from sllm.checkpoint.files.small_file import write_small_file
from sllm.checkpoint.format.config_dtype import with_dtype
from sllm.checkpoint.format.manifest import (
    FileEntry,
    Manifest,
    PartitionEntry,
    corrupt,
    make_manifest,
)
from sllm.checkpoint.format.manifest_file import write_manifest
from sllm.checkpoint.format.plain_files import read_plain
from sllm.checkpoint.importing.chunk_filler import ChunkFiller, Tally
from sllm.checkpoint.importing.chunk_plan import ChunkPlan, plan_chunks
from sllm.checkpoint.importing.chunk_workers import ChunkWorkers, Urgency
from sllm.checkpoint.importing.exchange import Contents, Exchange
from sllm.checkpoint.importing.import_plan import ImportPlan
from sllm.checkpoint.importing.journal import JOURNAL_FILE, ChunkKey, Journal
from sllm.checkpoint.sources.file_names import carried_name
from sllm.errors import Cancelled, SourceForbidden, SourceUnavailable

_CONFIG = "config.json"
_WORTH_GOING_ON = (Cancelled, SourceForbidden, SourceUnavailable)
"""What was written before these is as good as before."""


def import_checkpoint(
    plan: ImportPlan,
    destination: Path,
    *,
    chunk_bytes: int,
    progress: Callable[[int, int], object],
    cancelled: Callable[[], bool],
    memory: ChunkMemory | None = None,
    workers: ChunkWorkers | None = None,
    resume: bool = False,
    keep: bool = True,
    urgency: Urgency = lambda: 0,
    exchange: Exchange | None = None,
) -> Manifest:
    """Writes a checkpoint, whole and flushed to the disk.

    Memory is bounded by the workers', whatever the checkpoint's size. A process that is killed
    leaves an incomplete directory: give `destination` a temporary name, and rename it afterwards.

    Args:
        plan: what to import.
        destination: a directory that does not exist yet, unless it is to be resumed.
        chunk_bytes: size of the checkpoint's chunks.
        progress: told the bytes read so far and those to read; in any thread.
        cancelled: asked between pieces whether to stop.
        memory: where chunks are filled, and left; None: in the workers' memory.
        workers: fill chunks of `chunk_bytes`; None: a few of the import's own.
        resume: go on with what an import of the same plan has left in `destination`, and leave
            there what was done if this one is cancelled, or the source cannot be had any more.
            Otherwise nothing is left behind.
        urgency: of this import's chunks among those of others that share the workers.
        exchange: gives chunks that others have, and gives on what arrives. None: all come from the
            source, in their order.
        keep: False to leave chunks in `memory` alone, and small files in `destination`.

    Raises:
        Cancelled: `cancelled` said so.
        CheckpointCorrupt: the source cannot be read, or was changed meanwhile.
        SourceUnavailable: the source cannot be had now.
        InvalidSource: it was packed in chunks of another size.
        OSError: the disk is full, or fails.
    """
    plan.check_chunk_size(chunk_bytes)
    destination.mkdir(exist_ok=resume)
    tally = Tally(plan.files.size_bytes, progress, cancelled)
    try:
        with ExitStack() as stack:
            workers = workers or stack.enter_context(ChunkWorkers(chunk_bytes))
            return _Import(plan, destination, chunk_bytes, workers, keep, urgency, exchange).run(
                memory, tally
            )
    except BaseException as error:
        if not (resume and isinstance(error, _WORTH_GOING_ON)):
            shutil.rmtree(destination)
        raise


class _Import:
    def __init__(
        self,
        plan: ImportPlan,
        destination: Path,
        chunk_bytes: int,
        workers: ChunkWorkers,
        keep: bool,
        urgency: Urgency,
        exchange: Exchange | None,
    ) -> None:
        self._exchange = exchange
        self._plan = plan
        self._destination = destination
        self._chunk_bytes = chunk_bytes
        self._workers = workers
        self._keep = keep
        self._urgency = urgency

    def run(self, memory: ChunkMemory | None, tally: Tally) -> Manifest:
        files = [self._copy(path) for path in self._plan.files.files]
        partitions = self._write_partitions(memory, tally)
        manifest = self._plan.packed or make_manifest(self._plan.layout.tensors, partitions, files)
        # In this order: whoever finds no journal finds a manifest, and so a whole checkpoint.
        write_manifest(self._destination, manifest)
        (self._destination / JOURNAL_FILE).unlink()
        flush_directory(self._destination)
        self._check_unchanged()
        return manifest

    def _write_partitions(self, memory: ChunkMemory | None, tally: Tally) -> list[PartitionEntry]:
        source, chunks = self._plan.files, list(plan_chunks(self._plan.layout, self._chunk_bytes))
        described = self._plan.describe(self._chunk_bytes)
        with ExitStack() as stack:
            filler = ChunkFiller(
                reader=stack.enter_context(
                    self._plan.files.origin.open(self._plan.files.weights, tally.cancelled)
                ),
                files=[stack.enter_context(file) for file in self._open_partitions()],
                journal=stack.enter_context(Journal(self._destination, described)),
                memory=memory,
                workers=self._workers,
                tally=tally,
                expected=self._expected(),
                url=source.origin.url,
            )
            digests = self._bring(chunks, filler)
            for file in filler.files:
                file.flush()
        return self._entries(chunks, digests)

    def _expected(self) -> Mapping[ChunkKey, str]:
        known = self._exchange.expected if self._exchange else {}
        return {**known, **self._plan.expected_digests}

    def _bring(self, chunks: list[ChunkPlan], filler: ChunkFiller) -> list[str]:
        """The digests of all chunks, once they are there."""
        if self._exchange is None:
            works = (partial(filler.bring, chunk) for chunk in chunks)
            return self._workers.run(works, self._urgency)
        files = [file.path for file in filler.files]
        written = filler.journal.done
        self._exchange.begin(Contents(chunks, written, filler.memory, files))
        turns = repeat(partial(filler.bring_next, chunks, self._exchange), len(chunks))
        found = dict(self._workers.run(turns, self._urgency))
        while doubted := self._exchange.doubted:
            again = [partial(filler.bring_again, chunks, one, self._exchange) for one in doubted]
            found |= dict(self._workers.run(again, self._urgency))
        return [found[number] for number in range(len(chunks))]

    def _open_partitions(self) -> Iterator[DirectFile]:
        kept = len(self._plan.layout.partition_sizes) if self._keep else 0
        for index in range(kept):
            yield DirectFile(self._destination / _partition_name(index), os.O_RDWR | os.O_CREAT)

    def _entries(self, chunks: list[ChunkPlan], digests: list[str]) -> list[PartitionEntry]:
        found = zip(chunks, digests, strict=True)
        by_partition = groupby(found, lambda pair: pair[0].partition)
        sizes = self._plan.layout.partition_sizes
        return [
            PartitionEntry(
                _partition_name(index),
                sizes[index],
                self._chunk_bytes,
                tuple(digest for _, digest in pairs),
            )
            for index, pairs in by_partition
        ]

    def _copy(self, path: Path) -> FileEntry:
        content, name = read_plain(path, self._plan.files.room), carried_name(path)
        if name == _CONFIG and self._plan.dtype:
            content = with_dtype(content, self._plan.dtype, path)
        entry = write_small_file(self._destination / name, content)
        if self._plan.packed and entry not in self._plan.packed.files:
            raise corrupt(f"{self._plan.files.origin.url}/{name}", "is not what was packed")
        return entry

    def _check_unchanged(self) -> None:
        files = self._plan.files
        if files.origin.current_fingerprint() != files.fingerprint:
            raise corrupt(files.origin.url, "was changed while it was being imported; try again")


def _partition_name(index: int) -> str:
    return f"partition-{index:05}.bin"
