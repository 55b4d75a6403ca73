"""Loads a whole checkpoint into this process: `sllm.checkpoint.load`."""

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import torch

from sllm import machine
from sllm.checkpoint.files.memory import Region, TouchedAhead
from sllm.checkpoint.reading.chunk_reader import read_checkpoint
from sllm.checkpoint.reading.tensors import tensors_over
from sllm.checkpoint.reading.weights import find_weights
from sllm.clock import MonotonicClock

READ_THREADS = 4
"""As many chunks are read at once: enough for a disk to be busy."""
LOAD_THREADS = 8
"""The same of a whole checkpoint, of which some wait for memory or compute digests."""
TOUCH_THREADS = 2
"""Fresh memory is taken in chunks by as many threads, ahead of those that read into it."""


def load(
    path: str | os.PathLike[str], *, verify: bool = True, threads: int | None = None
) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint, by name.

    All bytes are read, past the page cache, into one region of memory that the tensors are views
    of: it is given back when the last of them is gone. For a few tensors of many use `open`.

    Example:
        model.load_state_dict(checkpoint.load("/models/mine"), assign=True)

    Args:
        path: a packed checkpoint, a directory of safetensors files, or one such file.
        verify: whether the digests of a packed checkpoint's chunks are checked.
        threads: read one chunk each. None: 8, or 4 where one alone can compute.

    Returns:
        Tensors on the CPU; tied ones share memory.

    Raises:
        SourceNotFound: nothing is there.
        InvalidSource: it is not a checkpoint, or cannot be read.
        CheckpointCorrupt: bytes are missing, or are not what was written; names file and offset.
        UnsupportedModel: torch has no dtype for a tensor.
    """
    weights = find_weights(path)
    partitions = weights.manifest.partitions
    region = Region(partitions)
    with (
        closing(TouchedAhead(region, partitions, machine.threads(TOUCH_THREADS))) as memory,
        ThreadPoolExecutor(threads or machine.threads(LOAD_THREADS), "chunk-read") as executor,
    ):
        read_checkpoint(
            weights.directory,
            weights.manifest,
            memory.chunk,
            threads=executor,
            clock=MonotonicClock(),
            progress=lambda loaded, total: None,
            cancelled=lambda: False,
            verify=verify,
        )
    buffers = [region.buffer(index) for index in range(len(partitions))]
    return tensors_over(weights.manifest.tensors, buffers)
