"""Becomes a process that makes a checkpoint's weights ready: `python -m sllm.node.worker.packing`.

It takes its order as JSON, and answers in JSON by a pipe: libraries write to all other files.
"""

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from mmap import mmap
from pathlib import Path
from typing import Any, Final

from sllm.process import die_with_parent

_THREADS: Final = 4
"""That read chunks from the disk."""


def run(order: dict[str, Any]) -> None:
    """Writes the checkpoint, and answers.

    Args:
        order: `engine` and `ranks` that it is for; `checkpoint`, a packed one's directory, and the
            `directory` that is written; `form`, as `form_file` has it; the `answer_fd`, and the
            `parent_pid`.
    """
    die_with_parent(order["parent_pid"])
    from sllm.errors import SllmError

    answer = {}
    try:
        _make(order)
    except SllmError as error:
        answer = {"code": error.code, "reason": error.reason, "message": error.message}
    os.write(order["answer_fd"], json.dumps(answer).encode())


def _make(order: dict[str, Any]) -> None:
    """Raises SllmError: why it cannot be made."""
    from sllm import machine
    from sllm.checkpoint.format.form import parse_form
    from sllm.checkpoint.format.manifest_file import read_manifest
    from sllm.node.worker.backends.choosing import backend_of
    from sllm.node.worker.making_ready import Making
    from sllm.node.worker.model.held_weights import PooledWeights
    from sllm.node.worker.model.module import load_files
    from sllm.node.worker.ranks import END_SECONDS, fork_ranks, make_ready, serve_rank

    backend, directory = backend_of(order["engine"]), Path(order["checkpoint"])
    threads, pool_fd = machine.processors(), os.memfd_create("sllm-packing")
    ranks = fork_ranks(
        order["ranks"],
        lambda pipe, rank: serve_rank(backend, pool_fd, threads, pipe, rank),
    )
    try:
        files = load_files(directory, backend.check)
        backend.check_ranks(files.architecture, order["ranks"])
        manifest = read_manifest(directory)
        chunk_bytes, partitions = _read(directory, manifest, pool_fd)
        weights = PooledWeights(chunk_bytes, partitions, manifest.tensors)
        form, target = parse_form(order["form"]), Path(order["directory"])
        making = Making(directory, weights, target, form, gives_way=False)
        make_ready(backend, files, pool_fd, making, ranks)
    finally:
        ranks.close(END_SECONDS)


def _read(directory: Path, manifest: Any, pool_fd: int) -> tuple[int, tuple[tuple[int, ...], ...]]:
    """Reads a checkpoint into memory that all ranks map.

    Returns:
        The size of its chunks, and where those of each partition are.
    """
    from sllm.checkpoint.reading.chunk_reader import read_checkpoint
    from sllm.clock import MonotonicClock

    chunk_bytes = max(entry.chunk_size for entry in manifest.partitions)
    partitions, count = [], 0
    for entry in manifest.partitions:
        partitions.append(tuple(range(count, count + entry.chunk_count)))
        count += entry.chunk_count
    os.ftruncate(pool_fd, count * chunk_bytes)
    memory = memoryview(mmap(pool_fd, count * chunk_bytes))

    def chunk(partition: int, index: int) -> memoryview:
        start = partitions[partition][index] * chunk_bytes
        return memory[start : start + chunk_bytes]

    with ThreadPoolExecutor(_THREADS) as threads:
        read_checkpoint(
            directory,
            manifest,
            chunk,
            threads=threads,
            clock=MonotonicClock(),
            progress=lambda done, total: None,
            cancelled=lambda: False,
        )
    return chunk_bytes, tuple(partitions)


if __name__ == "__main__":
    run(json.loads(sys.argv[1]))
