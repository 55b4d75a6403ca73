"""Weights written as an engine's kernels read them: the other thing that a worker is made for."""

import errno
import os
import threading
from pathlib import Path
from typing import Final

import torch

from sllm.errors import NoCapacity, UnsupportedModel
from sllm.node.worker.backends.interface import Backend
from sllm.node.worker.model.held_weights import PooledWeights, hold
from sllm.node.worker.model.module import ModelFiles
from sllm.node.worker.model.refusing import refusing
from sllm.node.worker.ready_made import contents
from sllm.node.worker.ready_made.packed_weight import can_pack

_LEAST: Final = 19
"""Niceness of work that nobody waits for."""


def make_ready(
    backend: Backend, files: ModelFiles, pool_fd: int, weights: PooledWeights, directory: Path
) -> None:
    """Does so, giving way to whoever else computes; blocks.

    Args:
        backend: of the engine.
        files: the model's small ones.
        pool_fd: the agent's pool.
        weights: as published, and where they are in it.
        directory: of the checkpoint that is made; not there yet.

    Raises:
        UnsupportedModel: The weights are not those of the model, or are not kept in this way.
        NoCapacity: The disk is full.
    """
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LEAST)
    torch.set_num_threads(1)  # the others would not give way
    held = hold(pool_fd, weights)
    if not can_pack():
        raise UnsupportedModel("weights are made ready with oneDNN, which torch lacks here")
    with refusing("its weights cannot be made ready"):
        ready = backend.make_ready(files, held.tensors)
    if not ready.packed:
        raise UnsupportedModel("its kernels read weights as they are published")
    try:
        contents.write(ready, directory, weights.chunk_bytes)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise NoCapacity(f"no room for ready-made weights: {error}") from error
