"""Pages of vLLM's cache, which leave it and come back beside the engine's thread.

vLLM keeps pages (blocks, in its words) that no request refers to, until it needs their room, and
finds them again by what is in them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import vllm
from vllm.v1.core.kv_cache_utils import BlockHash, make_block_hash_with_group_id
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.request import Request

from sllm.node.worker.engine.cache_pages import CachePages, read_bytes, write_bytes
from sllm.node.worker.engine.pages import PageLayout, Prefix
from sllm.node.worker.engine.vllm.batch import Batch

_GROUP = 0
"""Of caches, of which there is one."""
Hashes = Callable[[Prefix], Sequence[BlockHash]]
"""Gives the hashes of a prefix's whole pages."""


class VllmPages(CachePages[BlockHash]):
    """See `EnginePages`."""

    def __init__(self, core: Any, batch: Batch, hashes: Hashes) -> None:
        """Over a core's cache that `can_keep` says may be kept, before its first step."""
        self._scheduler = core.scheduler
        self._batch = batch
        self._hashes = hashes
        self._manager = core.scheduler.kv_cache_manager
        self._pool = self._manager.block_pool
        self._layers = _layers(core)
        self._unwritten: set[int] = set()
        """Pages that a step under way writes: vLLM has them be found before."""
        super().__init__(_layout(core, self._layers))

    # --- books ----------------------------------------------------------------------------------

    def _names(self, prefix: Prefix, count: int) -> list[BlockHash]:
        return list(self._hashes(prefix)[:count])

    def _has(self, name: BlockHash) -> bool:
        return self._pool.get_cached_block(name, [_GROUP]) is not None

    def _acquire(self, name: BlockHash) -> int | None:
        found = self._pool.get_cached_block(name, [_GROUP])
        if found is None or found[0].block_id in self._unwritten:
            return None
        self._pool.touch(found)
        row: int = found[0].block_id
        return row

    def _allocate(self, count: int) -> list[int]:
        free = self._pool.get_num_free_blocks()
        return [block.block_id for block in self._pool.get_new_blocks(min(count, free))]

    def _free(self) -> int:
        return int(self._pool.get_num_free_blocks())

    def _promised(self) -> int:
        return sum(
            max(len(rows), -(-self._most_tokens(key) // self.layout.tokens))
            for key, rows in self._tables().items()
        )

    def _most_tokens(self, key: str) -> int:
        running = self._batch.held(key)
        return len(running.request.prompt) + running.request.max_tokens if running else 0

    def _memory(self) -> Iterable[torch.Tensor]:
        return self._layers

    def _tables(self) -> Mapping[str, Any]:
        """By request, the blocks that it has."""
        (manager,) = self._manager.coordinator.single_type_managers
        tables: Mapping[str, Any] = manager.req_to_blocks
        return tables

    def _enter(self, row: int, name: BlockHash, index: int) -> int:
        if (known := self._acquire(name)) is not None:
            self._release([row])
            return known
        key = make_block_hash_with_group_id(name, _GROUP)
        tokens = (index + 1) * self.layout.tokens
        self._pool._insert_block_hash(key, self._pool.blocks[row], num_tokens=tokens)
        return row

    def _release(self, rows: Sequence[int]) -> None:
        # The last ones go first, as vLLM has it: without those before they are worth nothing.
        self._pool.free_blocks([self._pool.blocks[row] for row in reversed(rows)])

    def _write(self, row: int, page: memoryview) -> None:
        for layer, part in self._parts(row, page):
            write_bytes(layer, part)

    def _read(self, row: int, memory: memoryview) -> None:
        for layer, part in self._parts(row, memory):
            read_bytes(layer, part)

    def _parts(self, row: int, page: memoryview) -> list[tuple[torch.Tensor, memoryview]]:
        """Of each layer its part of a page, and where that is in the page."""
        size = len(page) // len(self._layers)
        return [
            (layer[row], page[index * size : (index + 1) * size])
            for index, layer in enumerate(self._layers)
        ]

    # --- the engine's thread --------------------------------------------------------------------

    def guard(self) -> None:
        """Has the scheduler change the books under the lock, and tell what requests leave."""
        scheduler, manager = self._scheduler, self._manager
        scheduler.schedule = self._scheduling(scheduler.schedule)
        scheduler.update_from_output = self._updating(scheduler.update_from_output)
        scheduler.finish_requests = self.guarded(scheduler.finish_requests)
        manager.get_computed_blocks = self.guarded(manager.get_computed_blocks)
        manager.free = self._freeing(manager.free)

    def _scheduling(self, schedule: Callable[..., Any]) -> Callable[..., Any]:
        def scheduled(*args: Any) -> Any:
            with self._changed, self._within_share():
                plan = schedule(*args)
                lacking = plan.preempted_req_ids or not plan.num_scheduled_tokens
                if lacking and self._scheduler.has_unfinished_requests():
                    self.make_room()  # in the next step there is some
                self._unwritten = self._written_by(plan)
                self._let_go_of(plan)
            self.pace.begin(plan.total_num_scheduled_tokens)
            return plan

        return scheduled

    @contextmanager
    def _within_share(self) -> Iterator[None]:
        """Lets no request begin while pages are owed."""
        scheduler, most = self._scheduler, self._scheduler.max_num_active_reqs
        if self.settle():
            scheduler.max_num_active_reqs = len(scheduler.running)
        try:
            yield
        finally:
            scheduler.max_num_active_reqs = most

    def _updating(self, update: Callable[..., Any]) -> Callable[..., Any]:
        def updated(*args: Any) -> Any:
            self.pace.end()
            with self._changed:
                self._unwritten = set()
                return update(*args)

        return updated

    def _freeing(self, free: Callable[[Request], None]) -> Callable[[Request], None]:
        def freed(request: Request) -> None:
            if request.is_finished():
                self._tell_end(request)
            with self._changed:
                free(request)

        return freed

    def _tell_end(self, request: Request) -> None:
        running = self._batch.held(request.request_id)
        if running is None or running.broken or running.request.images:
            return  # whatever has no numbers is worth nothing, and keys tell tokens alone
        if running.is_part and self._batch.wants(running):
            return  # the next part has its pages as well
        tokens = tuple(request.all_token_ids[: request.num_computed_tokens])
        self._on_end(Prefix(tokens, running.request.adapter))

    def _written_by(self, plan: Any) -> set[int]:
        """The pages that a step writes to."""
        tables = self._tables()
        pages: set[int] = set()
        for key, count in plan.num_scheduled_tokens.items():
            first = (
                self._scheduler.requests[key].num_computed_tokens - count
            ) // self.layout.tokens
            pages.update(block.block_id for block in tables[key][first:])
        return pages

    def _let_go_of(self, plan: Any) -> None:
        """Those that begin have taken what was put in for them."""
        for one in plan.scheduled_new_reqs:
            if running := self._batch.held(one.req_id):
                self.let_go(running.request.request_id)


def can_keep(core: Any) -> bool:
    """Whether pages of a core's cache can leave it: all attention, and run by one process."""
    groups = core.scheduler.kv_cache_config.kv_cache_groups
    return (
        core.vllm_config.parallel_config.world_size == 1
        and core.request_block_hasher is not None
        and len(groups) == 1
        and isinstance(groups[_GROUP].kv_cache_spec, FullAttentionSpec)
        and all(layer[0].is_contiguous() for layer in _caches(core))
    )


def withhold(core: Any, tokens: int) -> None:
    """Leaves a core without as many, for good: a cache whose pages cannot leave keeps its size."""
    pool, size = core.scheduler.kv_cache_manager.block_pool, core.scheduler.block_size
    pool.get_new_blocks(tokens // size)


def _caches(core: Any) -> Sequence[torch.Tensor]:
    """Of the layers, each [pages, ...]."""
    caches: list[torch.Tensor] = core.model_executor.driver_worker.worker.model_runner.kv_caches
    return caches


def _layers(core: Any) -> list[torch.Tensor]:
    """The same as bytes, [pages, bytes of a page]; of layers that share a cache one."""
    caches = {cache.data_ptr(): cache for cache in _caches(core)}
    return [cache.flatten(1).view(torch.uint8) for cache in caches.values()]


def _layout(core: Any, layers: Sequence[torch.Tensor]) -> PageLayout:
    cache, config = _caches(core)[0], core.vllm_config
    parts = (
        f"vllm {vllm.__version__}",
        f"torch {torch.__version__}",
        str(cache.dtype),
        cache.device.type,
        f"{len(layers)} layers",
        f"{list(cache.shape[1:])} of {core.scheduler.block_size} tokens",
        *sorted(_kernels(config)),
    )
    size = sum(layer.shape[1] for layer in layers)
    dtype = str(cache.dtype).removeprefix("torch.")
    return PageLayout(", ".join(parts), core.scheduler.block_size, size, dtype)


def _kernels(config: Any) -> set[str]:
    """Of attention, each of which has an order of its own within a page."""
    modules = config.compilation_config.static_forward_context.values()
    layers = [module for module in modules if hasattr(module, "impl")]
    return {f"{type(one.impl).__name__} {getattr(one, 'isa', '')}".strip() for one in layers}
