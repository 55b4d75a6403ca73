"""The requests of transformers' continuous batching, and the places where it lets us in.

In its thread, one step goes: the scheduler drops cancelled requests and chooses a batch, the
forward pass runs, the logits processor sees the logits, the router gets the tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from transformers import LogitsProcessorList
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessorList,
)
from transformers.generation.continuous_batching.continuous_api import OutputRouter
from transformers.generation.continuous_batching.requests import (
    FutureRequestState,
    GenerationOutput,
    RequestState,
    RequestStatus,
)
from transformers.generation.continuous_batching.scheduler import FIFOScheduler

from sllm.node.worker.engine.adapters import Adapter, AdapterHooks, MarkedTokens, Marks, Span
from sllm.node.worker.engine.choosing import Chosen, choose
from sllm.node.worker.engine.interface import (
    Counters,
    EngineRequest,
    FinishReason,
    NewToken,
    Step,
)
from sllm.node.worker.engine.prompt_hooks import PromptHooks
from sllm.node.worker.engine.prompt_scores import PromptRows, PromptScores

_AHEAD_TOKENS = 32
"""Tokens of those that give way in a step in which others generate: each adds to their wait."""


@dataclass(slots=True)
class _Running(Chosen):
    """What is known of a request beside what transformers keeps."""

    cached_prompt_tokens: int | None = None
    """None: not yet scheduled."""
    scores: PromptScores | None = None
    """Of its prompt, if it asks, until they are told."""


class Batch:
    """The requests under way and the counters.

    Threads: `add` and `drop` may be called from any thread; what they do to dicts and a set are
    single operations. The rest belongs to the engine's thread.
    """

    def __init__(self, on_step: Callable[[Step], None]) -> None:
        self.counters = Counters()
        """As of the latest step; replaced, never changed."""
        self.prompts = PromptHooks()
        """Of the model that is run."""
        self.adapters = AdapterHooks()
        """The same; attached if requests may have any."""
        self._marks = Marks()
        self._on_step = on_step
        self._requests: dict[str, _Running] = {}
        self._adapters: dict[str, Adapter] = {}
        """Of requests that the scheduler has, also of those that were dropped: their rows are
        computed to the end of a step, and found again in the cache."""
        self._finished: set[str] = set()
        """Requests that the scheduler is told to cancel, but that have got all they wanted."""
        self._scheduler: FIFOScheduler | None = None
        self._steps = 0
        self._generated = 0
        self._cancelled = 0

    def add(self, request: EngineRequest) -> None:
        """Takes a request that is about to be given to transformers."""
        if request.adapter:
            self._adapters[request.request_id] = request.adapter
        running = self._requests[request.request_id] = _Running(request)
        if request.prompt_logprobs is not None:
            running.scores = PromptScores(request.prompt, request.prompt_logprobs)

    def drop(self, request_id: str, *, finished: bool = False) -> bool:
        """Forgets a request before the scheduler does; false if it has ended."""
        if self._requests.pop(request_id, None) is None:
            return False
        if finished:
            self._finished.add(request_id)
        return True

    def watch(self, scheduler: FIFOScheduler) -> None:
        """Counts by this scheduler from now on."""
        self._scheduler = scheduler

    def let_go(self, request_ids: Sequence[str]) -> None:
        """Tells that the scheduler has dropped requests."""
        self._cancelled += sum(request_id not in self._finished for request_id in request_ids)
        self._finished.difference_update(request_ids)
        for request_id in request_ids:
            self._adapters.pop(request_id, None)
        self._report(())

    def gives_way(self, request_id: str) -> bool:
        """Whether a request is computed after all others; one that is cancelled does not matter."""
        running = self._requests.get(request_id)
        return running is not None and running.request.gives_way

    def asks_of_prompt(self, request_id: str) -> bool:
        """Whether all of a request's prompt has to be computed, whatever the cache has."""
        running = self._requests.get(request_id)
        return running is not None and running.scores is not None

    def is_background(self, request_id: str) -> bool:
        """Whether a request stands still while others are computed up to their first token."""
        running = self._requests.get(request_id)
        return running is not None and running.request.background

    def begin_step(self, scheduled: Sequence[FutureRequestState]) -> list[_Running | None]:
        """Counts a step; gives the requests that get a token from it, in the order of the rows."""
        self._steps += 1
        self.prompts.expect(list(self._prompt_parts(scheduled)))
        if self.adapters.layers:
            self.adapters.expect(self._spans(scheduled))
        self.counters = replace(self.counters, steps=self._steps)  # also if nothing comes of it
        for future in scheduled:
            running = self._requests.get(future.state.request_id)
            if running and running.cached_prompt_tokens is None:
                # The position is already that after this step.
                running.cached_prompt_tokens = future.state.position_offset - future.query_length
        getting = (future.state.request_id for future in scheduled if future.has_new_token)
        return [self._requests.get(request_id) for request_id in getting]

    def _prompt_parts(self, scheduled: Sequence[FutureRequestState]) -> Iterator[PromptRows]:
        """The parts of prompts in a step of which logprobs are asked for."""
        row = 0
        for future in scheduled:
            running = self._requests.get(future.state.request_id)
            if running and running.scores:
                first = future.state.position_offset - future.query_length
                if part := running.scores.part(row, first, future.query_length):
                    yield part
            row += future.query_length

    def _spans(self, scheduled: Sequence[FutureRequestState]) -> Iterator[Span]:
        """Whose rows those of a step are, of requests with adapters."""
        row = 0
        for future in scheduled:
            if adapter := self._adapters.get(future.state.request_id):
                yield Span(row, row + future.query_length, adapter)
            row += future.query_length

    def marked(self, request_id: str, tokens: list[int]) -> list[int]:
        """Tokens of a request as pages of the cache are to be told by, also if it was dropped."""
        adapter = self._adapters.get(request_id)
        return MarkedTokens(tokens, self._marks.of(adapter)) if adapter else tokens

    def end_step(self, outputs: Sequence[GenerationOutput]) -> None:
        """Counts the tokens of a step and hands them on."""
        self._generated += len(outputs)
        broken = tuple(output.request_id for output in outputs if self._break(output))
        tokens = [self._take(output) for output in outputs]
        for output in outputs:
            if output.is_finished():
                self._adapters.pop(output.request_id, None)
        self._report(tuple(token for token in tokens if token), broken)

    def _break(self, output: GenerationOutput) -> bool:
        """Ends a request whose logits were no numbers."""
        running = self._requests.get(output.request_id)
        if running is None or not running.broken:
            return False
        del self._requests[output.request_id]
        if not output.is_finished():
            self._leave_cache(output.request_id)
        return True

    def _take(self, output: GenerationOutput) -> NewToken | None:
        running = self._requests.get(output.request_id)
        if running is None:
            return None  # cancelled while the step was under way
        token_id = output.generated_tokens[-1]
        running.take(token_id)
        finish = _finish_reason(running.request, token_id) if output.is_finished() else None
        if running.request.gives_way and not finish:
            finish = self._leave_cache(output.request_id)
        if finish:
            self._requests.pop(output.request_id, None)
        scores, running.scores = running.scores, None
        return NewToken(
            request_id=output.request_id,
            token_id=token_id,
            logprob=running.logprob,
            finish=finish,
            cached_prompt_tokens=running.cached_prompt_tokens or 0,
            prompt=scores.whole() if scores else None,
        )

    def _leave_cache(self, request_id: str) -> FinishReason:
        """Ends what was computed ahead before it takes part in another step.

        transformers shares what a request has computed unless that very step has ended it.
        """
        if self._scheduler:
            self._finished.add(request_id)
            self._scheduler.set_request_cancellation(request_id)
        return FinishReason.LENGTH

    def _report(self, tokens: tuple[NewToken, ...], broken: tuple[str, ...] = ()) -> None:
        scheduler = self._scheduler
        self.counters = Counters(
            steps=self._steps,
            generated_tokens=self._generated,
            running_requests=len(scheduler.active_requests) if scheduler else 0,
            waiting_requests=len(scheduler.waiting_requests) if scheduler else 0,
            cancelled_requests=self._cancelled,
        )
        self._on_step(Step(tokens, self.counters, broken))


def _finish_reason(request: EngineRequest, token_id: int) -> FinishReason:
    return FinishReason.STOP if token_id in request.stop_token_ids else FinishReason.LENGTH


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


class Router(OutputRouter):  # type: ignore[misc]  # untyped library
    """Gives each step's outputs to a batch at once."""

    def __init__(self, batch: Batch, on_failure: Callable[[Exception], None]) -> None:
        super().__init__()
        self._batch = batch
        self._on_failure = on_failure

    def deliver_batch(self, outputs: list[GenerationOutput]) -> None:
        """The tokens of one step."""
        self._batch.end_step(outputs)

    def deliver(self, output: GenerationOutput) -> None:
        """A request that could not be gone on with, which only a broken engine leads to."""
        self._on_failure(RuntimeError(output.error))


class Sampler(ContinuousBatchingLogitsProcessorList):  # type: ignore[misc]  # untyped library
    """Draws the tokens of requests that ask for it.

    What follows in transformers is an argmax: a row whose token is drawn comes back with that
    token's score above all others, and a greedy row as it is.
    """

    def __init__(self, batch: Batch) -> None:
        super().__init__(LogitsProcessorList())
        self.do_processing = True
        self._batch = batch
        self._rows: list[_Running | None] = []

    def prepare_tensor_args(
        self, requests_in_batch: list[FutureRequestState], arg_storage: torch.Tensor
    ) -> torch.Tensor:
        """Notes which row of logits is whose; rows beyond them have no meaning."""
        self._rows = self._batch.begin_step(requests_in_batch)
        return arg_storage

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor, logits_processor_args: torch.Tensor
    ) -> torch.Tensor:
        """Chooses tokens by logits, float32 [rows, vocabulary]; computes their logprobs."""
        rows, self._rows = self._rows, []  # nothing of a request is held between steps
        return choose(scores, [(row, one) for row, one in enumerate(rows) if one])
