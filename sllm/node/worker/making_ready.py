"""Weights written as an engine's kernels read them: the other thing that a worker is made for."""

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from sllm.checkpoint.format.form import WeightForm
from sllm.errors import NoCapacity, UnsupportedModel
from sllm.node.worker.backends.interface import Backend
from sllm.node.worker.engine.group import Group, Rank
from sllm.node.worker.model.held_weights import PooledWeights, hold
from sllm.node.worker.model.module import ModelFiles
from sllm.node.worker.model.refusing import refusing
from sllm.node.worker.ready_made import contents
from sllm.node.worker.ready_made.contents import ReadyMade
from sllm.node.worker.ready_made.joining import join
from sllm.node.worker.ready_made.packed_weight import can_pack

CANNOT_MAKE: Final = "its weights cannot be made ready"
"""What is said of a model where the library fails at it."""
_LEAST: Final = 19
"""Niceness of work that nobody waits for."""


@dataclass(frozen=True, slots=True)
class Making:
    """What is to be made, as all ranks are told."""

    model: Path
    """Directory of the model's small files."""
    weights: PooledWeights
    """As published, and where they are in the pool."""
    directory: Path
    """Of the checkpoint that is made; not there yet."""
    form: WeightForm
    gives_way: bool
    """Whether nobody waits for it."""

    def part(self, rank: int) -> Path:
        """The directory to which one of several ranks writes what it reads."""
        return self.directory.with_name(f"{self.directory.name}.rank-{rank}")


def give_way() -> None:
    """Has this thread, and what it computes, give way to whoever else computes."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LEAST)
    torch.set_num_threads(1)  # the others would not give way


def make_part(
    backend: Backend, files: ModelFiles, pool_fd: int, making: Making, group: Group
) -> None:
    """Writes what the first rank reads, which is everything where it is alone; blocks.

    Args:
        backend: of the engine.
        files: the model's small ones.
        pool_fd: the pool.
        making: what is made.
        group: the processes that run the model, of which this is the first.

    Raises:
        UnsupportedModel: The weights are not those of the model, or are not kept in this way.
        NoCapacity: The disk is full.
    """
    if not can_pack():
        raise UnsupportedModel("weights are made ready with oneDNN, which torch lacks here")
    if making.gives_way:
        give_way()
    held = hold(pool_fd, making.weights)
    with refusing(CANNOT_MAKE):
        ready = backend.make_ready(files, held.tensors, group)
    write_part(ready, making, group.rank)


def write_part(ready: ReadyMade, making: Making, rank: Rank) -> None:
    """Writes what a rank reads.

    Raises:
        NoCapacity: The disk is full.
    """
    directory = making.directory if rank.size == 1 else making.part(rank.index)
    with _refusing_disk():
        contents.write(ready, directory, making.weights.chunk_bytes, making.form, rank.index)


def join_parts(making: Making) -> None:
    """Makes one checkpoint of what all ranks have written.

    Raises:
        NoCapacity: The disk is full.
    """
    parts = [making.part(rank) for rank in range(making.form.ranks)]
    with _refusing_disk():
        join(parts, making.directory)


@contextmanager
def _refusing_disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise NoCapacity(f"no room for ready-made weights: {error}") from error
