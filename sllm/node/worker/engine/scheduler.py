"""Which requests of transformers' continuous batching take part in a step."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from transformers.generation.continuous_batching.requests import (
    FutureRequestState,
    RequestState,
    RequestStatus,
)
from transformers.generation.continuous_batching.scheduler import FIFOScheduler

from sllm.node.worker.engine.batch import Batch

_AHEAD_TOKENS = 32
"""Tokens of those that give way in a step in which others generate: each adds to their wait."""


class _Chosen(NamedTuple):
    """What transformers' scheduler says of a step, in its order."""

    requests: list[FutureRequestState]
    any_did_not_fit: bool
    decodes_only: bool
    """Whether each gets one token, in the way that is made for that."""
    query_tokens: int
    cache_tokens: int

    def with_those(self, more: "_Chosen") -> "_Chosen":
        """Of these and of others in one step."""
        return _Chosen(
            self.requests + more.requests,
            self.any_did_not_fit or more.any_did_not_fit,
            self.decodes_only and more.decodes_only,
            self.query_tokens + more.query_tokens,
            self.cache_tokens + more.cache_tokens,
        )


class Scheduler(FIFOScheduler):  # type: ignore[misc]  # untyped library
    """First come, first served, but for those that give way; tells the batch whom it has let go."""

    def __init__(self, batch: Batch, **options: Any) -> None:
        super().__init__(**options)
        self._batch = batch
        self.starved_requests: list[Any]
        self._prompt_rows = batch.most_prompt_rows
        """Of logits that prompts may still have in the step."""
        self._step: list[tuple[FutureRequestState, list[int]]] = []
        """Those of the last step, each with the tokens that are computed of it."""
        self._match_prefix = self.cache.search_prefix_match
        self.cache.search_prefix_match = self._search_prefix
        if batch.adapters.layers:
            self._mark_pages()
        batch.watch(self)

    def _search_prefix(self, request_id: str, prompt_ids: list[int]) -> int:
        """Tokens of a prompt that need not be computed."""
        if self._batch.asks_of_prompt(request_id):
            return 0
        matched: int = self._match_prefix(request_id, self._batch.marked(request_id, prompt_ids))
        return matched

    def _mark_pages(self) -> None:
        """Has pages be told by the adapter that they were computed with, too."""
        for allocator in self.cache.cache_allocators.values():
            mark = partial(self._mark_complete, allocator.mark_complete_blocks)
            allocator.mark_complete_blocks = mark

    def _mark_complete(
        self, mark: Callable[..., None], request_id: str, token_ids: list[int], *counts: Any
    ) -> None:
        """Has pages that are full be found again by their tokens."""
        mark(request_id, self._batch.marked(request_id, token_ids), *counts)

    def add_waiting_request(self, state: RequestState) -> None:
        """Takes a request."""
        super().add_waiting_request(state)
        self._batch.came(state.request_id)

    def schedule_batch(
        self, token_budget: int, cache_budget: int
    ) -> tuple[list[FutureRequestState] | None, bool, int, int]:
        """Chooses a step's requests, and keeps what it takes to do it again."""
        self._prompt_rows = self._batch.most_prompt_rows
        chosen, *rest = super().schedule_batch(token_budget, cache_budget)
        self._step = [(one, one.state.tokens_to_process) for one in chosen or ()]
        ids = [one.state.request_id for one in chosen or ()]
        self._batch.lookout.begin(map(self._batch.is_background, ids))
        return chosen, *rest

    def _schedule_request(
        self, state: RequestState, request_tokens: list[int], token_budget: int, *removed: Any
    ) -> None:
        """Takes a request into a step: of prompts whose logits are wanted only so much at once."""
        if self._batch.asks_of_prompt(state.request_id):
            token_budget = min(token_budget, max(1, self._prompt_rows))
            self._prompt_rows -= min(token_budget, len(request_tokens))
        super()._schedule_request(state, request_tokens, token_budget, *removed)

    def take_back(self) -> None:
        """Has requests be as before the step that was chosen last, which was broken off.

        Pages of the cache are known to others once a step has ended, and written to again.
        """
        for future, tokens in self._step:
            state = future.state
            state.position_offset -= future.query_length
            if state.generated_len():
                state.tokens_to_process = tokens
            else:
                state.remaining_prefill_tokens = tokens + state.remaining_prefill_tokens
                state.status = RequestStatus.PREFILLING

    def clear_cancelled_requests(self) -> list[RequestState]:
        """Drops cancelled requests before a step."""
        cleared: list[RequestState] = super().clear_cancelled_requests()
        if cleared:
            # Set when the cache was short, and unset by requests that finish. Those that are
            # cancelled make room as well; without this, new requests could wait for ever.
            self.block_new_requests = False
            self._batch.let_go([state.request_id for state in cleared])
        return cleared

    def _process_candidates(
        self,
        candidates: list[RequestState],
        token_budget: int,
        cache_budget: int,
        no_longer_waiting: set[str],
    ) -> _Chosen:
        """Chooses a step's requests: who gives way comes only into steps without others' prompts.

        And beside others that generate it takes a small part. Otherwise what is computed ahead for
        a generation that is to come would hold up those that are there, and those that have come:
        for the length of a prompt, or that of a large step.
        """
        first = [one for one in candidates if not self._batch.gives_way(one.request_id)]
        last = [one for one in candidates if self._batch.gives_way(one.request_id)]
        prompts = {one.request_id for one in first if one.status != RequestStatus.DECODING}
        budgets = token_budget, cache_budget, no_longer_waiting
        chosen = _Chosen(*super()._process_candidates(self._awaited(first), *budgets))
        if not chosen.requests:  # there is no room for those that somebody waits for
            chosen = _Chosen(*super()._process_candidates(first, *budgets))
        tokens = token_budget - chosen.query_tokens
        if chosen.requests:
            tokens = min(tokens, _AHEAD_TOKENS)
        last = last[: self.max_requests_per_batch - len(chosen.requests)]
        if not (last and tokens) or any(one.state.request_id in prompts for one in chosen.requests):
            return chosen
        starved = self.starved_requests
        left = cache_budget - chosen.cache_tokens
        ahead = _Chosen(*super()._process_candidates(last, tokens, left, no_longer_waiting))
        self.starved_requests = starved + self.starved_requests
        return chosen.with_those(ahead)

    def _awaited(self, candidates: list[RequestState]) -> list[RequestState]:
        """Those that somebody waits for while any of them has no token yet; all of them else."""
        awaited = [one for one in candidates if not self._batch.is_background(one.request_id)]
        has_prompts = any(one.status != RequestStatus.DECODING for one in awaited)
        return awaited if has_prompts else candidates
