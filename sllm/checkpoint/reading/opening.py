"""Single tensors of a checkpoint: `sllm.checkpoint.open`."""

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Self

import torch

from sllm import machine
from sllm.checkpoint.files.memory import Region
from sllm.checkpoint.format.manifest import BLOCK_BYTES, CHUNK_BYTES, PartitionEntry, TensorEntry
from sllm.checkpoint.reading.chunk_reader import open_file, read_chunks, reads_of
from sllm.checkpoint.reading.loading import READ_THREADS
from sllm.checkpoint.reading.tensors import tensor_over
from sllm.checkpoint.reading.weights import Weights, find_weights
from sllm.clock import MonotonicClock


class OpenCheckpoint(Mapping[str, torch.Tensor]):
    """The tensors of a checkpoint by name, each read when it is asked for, and every time anew.

    Use it as a context manager. Tensors are the caller's own and outlive it.
    """

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._entries = {entry.name: entry for entry in weights.manifest.tensors}
        with ExitStack() as opened:
            reads = ThreadPoolExecutor(machine.threads(READ_THREADS), "chunk-read")
            self._threads = opened.enter_context(reads)
            self._files = [
                opened.enter_context(open_file(weights.directory / entry.file))
                for entry in weights.manifest.partitions
            ]
            self._opened = opened.pop_all()
        self._closed = False

    def __getitem__(self, name: str) -> torch.Tensor:
        """Reads one tensor: its own bytes, to the borders of blocks. Digests are not checked.

        Raises:
            KeyError: there is none of this name.
            ValueError: the checkpoint is closed.
            CheckpointCorrupt: it cannot be read; names the file and offset.
            UnsupportedModel: torch has no dtype for it.
        """
        return self._read(self._entries[name])

    def _read(self, entry: TensorEntry) -> torch.Tensor:
        start = entry.offset // BLOCK_BYTES * BLOCK_BYTES
        piece = PartitionEntry("", entry.offset + entry.size - start, CHUNK_BYTES, ())
        region = Region([piece])
        self._fill(region, piece, entry.partition, start)
        return tensor_over(
            replace(entry, partition=0, offset=entry.offset - start), region.buffer(0)
        )

    def _fill(self, region: Region, piece: PartitionEntry, partition: int, start: int) -> None:
        if self._closed:
            raise ValueError("the checkpoint is closed")
        reads = reads_of(piece, partial(region.chunk, 0), self._files[partition])
        read_chunks(
            [replace(read, offset=start + read.offset) for read in reads],
            threads=self._threads,
            clock=MonotonicClock(),
            progress=lambda loaded, total: None,
            cancelled=lambda: False,
        )

    def __iter__(self) -> Iterator[str]:
        """Names, in the order in which the checkpoint holds their tensors."""
        return iter(self._entries)

    def __len__(self) -> int:
        """How many tensors there are."""
        return len(self._entries)

    def close(self) -> None:
        """Closes the files. Nothing may be being read; closing it again does nothing."""
        self._closed = True
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def open_checkpoint(path: str | os.PathLike[str]) -> OpenCheckpoint:
    """A checkpoint whose tensors are read one by one.

    Example:
        with checkpoint.open("/models/mine") as opened:
            norms = {name: opened[name] for name in opened if "norm" in name}

    Args:
        path: a packed checkpoint, a directory of safetensors files, or one such file.

    Raises:
        SourceNotFound: nothing is there.
        InvalidSource: it is not a checkpoint, or cannot be read.
        CheckpointCorrupt: a file is missing, cut short or contradicts itself; names the file.
    """
    return OpenCheckpoint(find_weights(path))
