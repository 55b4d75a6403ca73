"""A scheduler of transformers' steps that lets pages of its cache leave, and come back."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.generation.continuous_batching.requests import RequestState, RequestStatus

from sllm.node.worker.engine.batch import Batch
from sllm.node.worker.engine.paged_cache import PagedCache
from sllm.node.worker.engine.scheduler import Scheduler

PAGES_LEAVE: Final = hasattr(PagedAttentionCache, "count_new_complete_blocks")
"""Not before transformers 5.23."""


class KeepingScheduler(Scheduler):
    """A scheduler whose cache pages may leave, and come back to."""

    def __init__(
        self, batch: Batch, on_pages: Callable[[PagedCache | None], None], **options: Any
    ) -> None:
        super().__init__(batch, **options)
        self.safety_margin: float
        self._pages = PagedCache(self.cache, batch) if _can_keep(self.cache) else None
        if self._pages:
            self._pages.guard()
            # Held while cancelled requests leave their pages, and taken again by what drops them:
            # one that is cancelled in between would be dropped without.
            self._cancellation_lock = threading.RLock()
        on_pages(self._pages)

    def schedule_batch(self, token_budget: int, cache_budget: int) -> Any:
        """Chooses a step; pages on their way give way to requests that lack room."""
        pages = self._pages
        if pages is None:
            return super().schedule_batch(token_budget, cache_budget)
        with pages.changing(), self._within_share(pages):
            chosen = super().schedule_batch(token_budget, cache_budget)
            if chosen[0] is None and pages.make_room():
                self.cache.evict_cached_blocks()
                chosen = super().schedule_batch(token_budget, cache_budget)
            elif self.starved_requests and pages.make_room():
                self.starved_requests = []  # there is room in the next step
            for future in chosen[0] or ():
                pages.let_go(future.state.request_id)
        pages.pace.begin(sum(future.query_length for future in chosen[0] or ()))
        return chosen

    @contextmanager
    def _within_share(self, pages: PagedCache) -> Iterator[None]:
        """Lets no request begin while pages are owed; of what is free it sees the share's part."""
        blocked, margin = self.block_new_requests, self.safety_margin
        self.block_new_requests = pages.settle() or blocked
        self.safety_margin = margin * pages.shared_part
        try:
            yield
        finally:
            self.block_new_requests, self.safety_margin = blocked, margin

    def finish_request(self, request_id: str) -> None:
        """Ends a request; what it has computed is told."""
        state = self.active_requests.get(request_id)
        if self._pages and state and state.status == RequestStatus.FINISHED:
            with self._pages.changing():
                self._pages.leave(state, _computed(state))
        super().finish_request(request_id)

    def clear_cancelled_requests(self) -> list[RequestState]:
        """Drops cancelled requests before a step; the same."""
        pages = self._pages
        if pages is None:
            return super().clear_cancelled_requests()
        with pages.changing(), self._cancellation_lock:
            for request_id in self._requests_to_cancel:
                pages.let_go(request_id)
                state = self.active_requests.get(request_id)
                if state:
                    pages.leave(state, _computed(state))
            return super().clear_cancelled_requests()


def _computed(state: RequestState) -> list[int]:
    """The tokens whose keys and values a request has computed, or found."""
    tokens: list[int] = (state.initial_tokens + state.generated_tokens)[: state.position_offset]
    return tokens


def _can_keep(cache: Any) -> bool:
    """Whether pages of a cache can leave it: not before transformers 5.23, nor all attention."""
    allocators = getattr(cache, "cache_allocators", {})
    return bool(getattr(cache, "use_prefix_sharing", False)) and len(allocators) == 1
