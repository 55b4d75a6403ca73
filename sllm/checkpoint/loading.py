"""Loads a whole checkpoint into this process: `sllm.checkpoint.load`."""

import os
from concurrent.futures import ThreadPoolExecutor

import torch

from sllm.checkpoint.chunk_reader import read_checkpoint
from sllm.checkpoint.memory import Region
from sllm.checkpoint.tensors import tensors_over
from sllm.checkpoint.weights import find_weights
from sllm.clock import MonotonicClock

READ_THREADS = 4
"""As many chunks are read at once: enough for a disk to be busy while digests are computed."""


def load(
    path: str | os.PathLike[str], *, verify: bool = True, threads: int = READ_THREADS
) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint, by name.

    All bytes are read, past the page cache, into one region of memory that the tensors are views
    of: it is given back when the last of them is gone. For a few tensors of many use `open`.

    Args:
        path: a packed checkpoint, a directory of safetensors files, or one such file.
        verify: whether the digests of a packed checkpoint's chunks are checked.
        threads: read one chunk each.

    Returns:
        Tensors on the CPU; tied ones share memory.

    Raises:
        SourceNotFound: nothing is there.
        InvalidSource: it is not a checkpoint, or cannot be read.
        CheckpointCorrupt: bytes are missing, or are not what was written; names file and offset.
        UnsupportedModel: torch has no dtype for a tensor.
    """
    weights = find_weights(path)
    region = Region(weights.manifest.partitions)
    with ThreadPoolExecutor(threads, "chunk-read") as executor:
        read_checkpoint(
            weights.directory,
            weights.manifest,
            region.chunk,
            threads=executor,
            clock=MonotonicClock(),
            progress=lambda loaded, total: None,
            cancelled=lambda: False,
            verify=verify,
        )
    buffers = [region.buffer(index) for index in range(len(weights.manifest.partitions))]
    return tensors_over(weights.manifest.tensors, buffers)
