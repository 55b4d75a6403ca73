"""Pages of transformers' cache, which leave it and come back beside the engine's thread.

transformers keeps pages (blocks, in its words) that no request refers to, and finds them again by
what is in them.
"""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import torch
import transformers
from transformers.generation.continuous_batching.requests import RequestState

from sllm.node.worker.engine.adapters import MarkedTokens
from sllm.node.worker.engine.batch import Batch
from sllm.node.worker.engine.cache_pages import CachePages, read_bytes, write_bytes
from sllm.node.worker.engine.pages import PageLayout, Prefix

SPARE_PAGES = 1
"""Since a page may be allocated before its first token is there."""


class PagedCache(CachePages[int]):
    """See `EnginePages`."""

    _spare_rows = SPARE_PAGES

    def __init__(self, cache: Any, batch: Batch) -> None:
        """`cache`: that of transformers, with one allocator."""
        self._cache = cache
        self._batch = batch
        (self._allocator,) = cache.cache_allocators.values()
        self._rows: torch.Tensor = self._allocator._copy_view
        super().__init__(
            PageLayout(
                name=_layout_name(cache, self._allocator),
                tokens=self._allocator.tokens_per_page,
                size_bytes=self._allocator.bytes_per_block,
                dtype=str(cache.dtype).removeprefix("torch."),
            )
        )

    @property
    def whole(self) -> Any:
        """The cache as transformers has it, for layers that are computed beside the engine."""
        return self._cache

    # --- books ----------------------------------------------------------------------------------

    def _names(self, prefix: Prefix, count: int) -> list[int]:
        from transformers.generation.continuous_batching.cache_allocators.cache_allocator import (
            compute_block_hash,  # not in all versions that this engine runs on
        )

        tokens: list[int] = list(prefix.tokens)
        if prefix.adapter:
            with self._changed:
                tokens = MarkedTokens(tokens, self._batch.mark_of(prefix.adapter))
        names: list[int] = []
        size, name = self.layout.tokens, None
        for index in range(count):
            name = compute_block_hash(name, tokens[index * size : (index + 1) * size])
            names.append(name)
        return names

    def _has(self, name: int) -> bool:
        return name in self._allocator.ledger.hash_to_block

    def _acquire(self, name: int) -> int | None:
        row: int | None = self._allocator.ledger.hash_to_block.get(name)
        if row is not None:
            self._allocator.ledger.acquire(row)
        return row

    def _allocate(self, count: int) -> list[int]:
        pool, allocator = self._allocator.pool, self._allocator
        if (lacking := count - self._free_rows()) > 0:
            self._evict(lacking)
            pool.try_to_free_sectors()
        count = min(count, self._free_rows())
        while pool.count_free_blocks(allocator.index) < count:
            pool.allocate_sector(allocator.index)
        rows: list[int] = pool.get_free_blocks(allocator.index, count)
        return rows

    def _free_rows(self) -> int:
        pool, allocator = self._allocator.pool, self._allocator
        free: int = pool.num_free_sectors * allocator.blocks_per_sector
        free += pool.count_free_blocks(allocator.index)
        return free

    def _evict(self, count: int) -> None:
        """Frees what nobody has referred to for longest."""
        ledger = self._allocator.ledger
        rows = list(islice(ledger.cached_blocks, count))
        for row in rows:
            del ledger.cached_blocks[row]
            del ledger.hash_to_block[ledger.block_to_hash.pop(row)]
        self._allocator.pool.free_blocks(self._allocator.index, rows)

    def _free(self) -> int:
        return self._free_rows() + len(self._allocator.ledger.cached_blocks)

    def _promised(self) -> int:
        size = self.layout.tokens
        return sum(
            max(len(rows), -(-self._batch.most_tokens(request_id) // size))
            for request_id, rows in self._allocator.block_table.items()
        )

    def _memory(self) -> Iterable[torch.Tensor]:
        return (self._rows,)

    def _enter(self, row: int, name: int, index: int) -> int:
        known: int | None = self._allocator.ledger.register_new_hash(row, name)
        if known is None:
            return row
        self._allocator.ledger.acquire(known)
        self._allocator.pool.free_blocks(self._allocator.index, [row])
        return known

    def _release(self, rows: Sequence[int]) -> None:
        free = [row for row in rows if self._allocator.ledger.release(row)]
        self._allocator.pool.free_blocks(self._allocator.index, free)

    def _write(self, row: int, page: memoryview) -> None:
        write_bytes(self._rows[row], page)

    def _read(self, row: int, memory: memoryview) -> None:
        read_bytes(self._rows[row], memory)

    # --- the engine's thread --------------------------------------------------------------------

    def guard(self) -> None:
        """Has transformers change the books under the lock, wherever it does."""
        for name in ("free_blocks", "evict_cached_blocks", "mark_complete_blocks"):
            setattr(self._cache, name, self.guarded(getattr(self._cache, name)))
        self._cache.mark_complete_blocks = self.pace.ending(self._cache.mark_complete_blocks)

    def leave(self, state: RequestState, tokens: Sequence[int]) -> None:
        """Has what a request has computed be found, and tells of it; before its pages are freed.

        Args:
            state: of the request, after a step that was computed whole.
            tokens: whose keys and values are in its pages.
        """
        has_pages = state.request_id in self._allocator.block_table
        if not has_pages or self._batch.is_broken(state.request_id):
            return  # whatever has no numbers is worth nothing
        self._allocator.mark_complete_blocks(state.request_id, list(tokens), len(tokens))
        self._on_end(Prefix(tuple(tokens), self._batch.adapter_of(state.request_id)))


def _layout_name(cache: Any, allocator: Any) -> str:
    parts = (
        f"transformers {transformers.__version__}",
        f"torch {torch.__version__}",
        str(cache.dtype),
        cache.device.type if isinstance(cache.device, torch.device) else str(cache.device),
        f"{len(allocator.layer_indices)} layers",
        f"{allocator.num_key_value_heads} heads of {allocator.head_dim}",
        f"{allocator.tokens_per_page} tokens",
    )
    return ", ".join(parts)
