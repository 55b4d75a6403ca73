"""The node's own ways, in one process that lasts as a node agent does, and the ceilings.

Its pool was touched when it started. The ceilings are read into the same memory.
"""

import asyncio
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import numpy as np

from bench.loading.contender import Group, Load, Tensors
from bench.loading.models import CHUNK_BYTES, SSD_BYTES, Model
from sllm.checkpoint.format.manifest import Manifest
from sllm.checkpoint.reading.chunk_reader import read_checkpoint
from sllm.checkpoint.reading.loading import READ_THREADS, load
from sllm.checkpoint.reading.tensors import tensors_over
from sllm.checkpoint.reading.weights import Weights, find_weights
from sllm.clock import MonotonicClock
from sllm.node.store.lease import Lease
from sllm.node.store.tier_store import TierStore
from sllm.node.tiers.pool import Pool
from sllm.node.tiers.types import Tier
from sllm.node.worker.model.mapping import map_chunks

DIRECT_PACKED = "ceiling, direct, packed"
DIRECT_PLAIN = "ceiling, direct, plain"
MEMCPY = "ceiling, memcpy"
NODE = "sllm node, SSD to pool"
IN_PLACE = "sllm node, in place"
DIGESTS = "sllm reader, digests"
NO_DIGESTS = "sllm reader, no digests"
ATTACH = "sllm attach, DRAM"
LOAD_PACKED = "sllm load, packed"
LOAD_PLAIN = "sllm load, in place"


class _Ceilings:
    """What disk and memory can do, into chunks of the pool."""

    def __init__(self, pool: Pool, threads: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._threads = threads

    def read(self, paths: Sequence[Path]) -> Tensors:
        """Reads files with O_DIRECT, one chunk for each thread at a time."""
        with ExitStack() as files:
            places = [(fd, at) for fd in map(_opened(files), paths) for at in _offsets(fd)]
            list(self._threads.map(self._read_chunk, range(len(places)), places))
        return {}

    def _read_chunk(self, chunk: int, place: tuple[int, int]) -> None:
        fd, offset = place
        with self._pool.view(chunk) as memory:
            os.preadv(fd, [memory], offset)

    def copy(self, size: int) -> Tensors:
        """Copies as many bytes, half of the pool into the other half and back."""
        half = -(-size // CHUNK_BYTES) // 2
        there = [(chunk, chunk + half) for chunk in range(half)]
        back = [(chunk + half, chunk) for chunk in range(half)]
        list(self._threads.map(self._copy_chunk, there + back))
        return {}

    def _copy_chunk(self, way: tuple[int, int]) -> None:
        source, target = (np.frombuffer(self._pool.view(chunk), np.uint64) for chunk in way)
        np.copyto(target, source)


def _opened(files: ExitStack) -> Callable[[Path], int]:
    def opened(path: Path) -> int:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
        files.callback(os.close, fd)
        return fd

    return opened


def _offsets(fd: int) -> range:
    return range(0, os.fstat(fd).st_size, CHUNK_BYTES)


class _Reader:
    """The reader of checkpoints alone, without the tier store around it."""

    def __init__(self, pool: Pool, threads: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._threads = threads

    def read(self, weights: Weights, verify: bool) -> Tensors:
        chunks = iter(range(self._pool.chunk_count))
        places = [[next(chunks) for _ in range(count)] for count in _counts(weights.manifest)]
        read_checkpoint(
            weights.directory,
            weights.manifest,
            lambda partition, index: self._pool.view(places[partition][index]),
            threads=self._threads,
            clock=MonotonicClock(),
            progress=lambda loaded, total: None,
            cancelled=lambda: False,
            verify=verify,
        )
        return {}


def _counts(manifest: Manifest) -> list[int]:
    return [-(-entry.size // entry.chunk_size) for entry in manifest.partitions]


class _Node:
    """The tier store of a node, as its agent uses it."""

    def __init__(self, model: Model, pool: Pool, *, packed: bool) -> None:
        self._model = model
        self._pool = pool
        self._packed = packed
        directory = model.store if packed else model.plain_store
        self._loop = asyncio.new_event_loop()
        self._store = self._loop.run_until_complete(
            TierStore.open(directory, SSD_BYTES, pool, clock=MonotonicClock())
        )
        self._lease: Lease | None = None

    def promote(self) -> Tensors:
        self._lease = self._lease_in_pool()
        return {}

    def _lease_in_pool(self) -> Lease:
        source = str(self._model.source)
        promotion = self._store.promote(source, None, Tier.DRAM, pack=self._packed)
        return self._loop.run_until_complete(promotion)

    def attach(self) -> Tensors:
        """What a start does: a lease, the chunks mapped side by side, and tensors over them."""
        lease = self._lease_in_pool()
        mapping = map_chunks(self._pool.fd, self._pool.chunk_bytes, lease.chunks)
        manifest = lease.manifest
        buffers = [mapping.buffer(index) for index in range(len(manifest.partitions))]
        mapping.close()
        lease.release()  # the one that was there before stays
        return tensors_over(manifest.tensors, buffers)

    def evict(self) -> None:
        assert self._lease is not None, "nothing is in the pool"
        digest = self._lease.manifest.digest
        self._lease.release()
        self._loop.run_until_complete(self._store.evict(digest, Tier.DRAM))

    def close(self) -> None:
        self._loop.run_until_complete(self._store.close())
        self._loop.close()


@contextmanager
def _node(model: Model) -> Iterator[Mapping[str, Load]]:
    packed, plain = find_weights(model.packed), find_weights(model.source)
    counts = max(sum(_counts(packed.manifest)), sum(_counts(plain.manifest)))
    pool = Pool((counts + 1) * CHUNK_BYTES, CHUNK_BYTES)
    for chunk in range(pool.chunk_count):
        pool.touch(chunk)
    with (
        closing(pool),
        ThreadPoolExecutor(READ_THREADS) as threads,
        # Two stores over one pool: they never hold anything at the same time.
        closing(_Node(model, pool, packed=True)) as node,
        closing(_Node(model, pool, packed=False)) as plain_node,
    ):
        ceilings, reader = _Ceilings(pool, threads), _Reader(pool, threads)
        yield {
            DIRECT_PACKED: Load(lambda: ceilings.read(model.partitions)),
            DIRECT_PLAIN: Load(lambda: ceilings.read(model.safetensors)),
            MEMCPY: Load(lambda: ceilings.copy(model.size_bytes)),
            NODE: Load(node.promote, after=node.evict),
            IN_PLACE: Load(plain_node.promote, after=plain_node.evict),
            DIGESTS: Load(lambda: reader.read(packed, verify=True)),
            NO_DIGESTS: Load(lambda: reader.read(packed, verify=False)),
            ATTACH: Load(node.attach, before=node.promote, after=node.evict, in_page_cache=True),
        }


@contextmanager
def _load(model: Model) -> Iterator[Mapping[str, Load]]:
    yield {
        LOAD_PACKED: Load(lambda: load(model.packed)),
        LOAD_PLAIN: Load(lambda: load(model.source)),
    }


PLAIN = frozenset({DIRECT_PLAIN, IN_PLACE, LOAD_PLAIN})
"""Those that read safetensors; the others read the packed checkpoint."""


def _files(model: Model, name: str) -> list[Path]:
    return model.safetensors if name in PLAIN else model.partitions


NODE_GROUP = Group(
    (DIRECT_PACKED, DIRECT_PLAIN, MEMCPY, NODE, IN_PLACE, DIGESTS, NO_DIGESTS, ATTACH),
    _node,
    _files,
    lasting=True,
    repeats=3,
)
LIBRARY_GROUP = Group((LOAD_PACKED, LOAD_PLAIN), _load, _files)
