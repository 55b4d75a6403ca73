"""The requests of transformers' continuous batching, and the places where it lets us in.

In its thread, one step goes: the scheduler drops cancelled requests and chooses a batch, the
forward pass runs, the logits processor sees the logits, the router gets the tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from transformers import LogitsProcessorList
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessorList,
)
from transformers.generation.continuous_batching.continuous_api import OutputRouter
from transformers.generation.continuous_batching.requests import (
    FutureRequestState,
    GenerationOutput,
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
from sllm.node.worker.engine.interruption import Lookout
from sllm.node.worker.engine.prompt_hooks import PromptHooks
from sllm.node.worker.engine.prompt_scores import PromptRows, PromptScores, rows_at_once


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

    def __init__(self, on_step: Callable[[Step], None], vocabulary: int) -> None:
        """No request is under way. `vocabulary`: tokens that the model knows."""
        self.counters = Counters()
        """As of the latest step; replaced, never changed."""
        self.most_prompt_rows = rows_at_once(vocabulary)
        """Of logits for prompts in one step."""
        self.prompts = PromptHooks()
        """Of the model that is run."""
        self.adapters = AdapterHooks()
        """The same; attached if requests may have any."""
        self.lookout = Lookout(lambda: bool(self._coming))
        """The same; attached where steps are broken off."""
        self._coming: set[str] = set()
        """Requests that somebody waits for, until the scheduler has them."""
        self._marks = Marks()
        self._on_step = on_step
        self._requests: dict[str, _Running] = {}
        self._adapters: dict[str, Adapter] = {}
        """Of requests that the scheduler has, also of those that were dropped: their rows are
        computed to the end of a step, and found again in the cache."""
        self._finished: set[str] = set()
        """Requests that the scheduler is told to cancel, but that have got all they wanted."""
        self._broken: set[str] = set()
        """Requests that the scheduler is told to cancel, as their logits were no numbers."""
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
        if not (request.background or request.gives_way):
            self._coming.add(request.request_id)

    def came(self, request_id: str) -> None:
        """Tells that the scheduler has a request, which will be in its next step."""
        self._coming.discard(request_id)

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
        self._broken.difference_update(request_ids)
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

    def adapter_of(self, request_id: str) -> Adapter | None:
        """Of a request that the scheduler has, also if it was dropped."""
        return self._adapters.get(request_id)

    def is_broken(self, request_id: str) -> bool:
        """Whether a request's logits were no numbers."""
        running = self._requests.get(request_id)
        return request_id in self._broken or (running is not None and running.broken)

    def most_tokens(self, request_id: str) -> int:
        """Tokens that a request comes to have at most. 0: it has been dropped."""
        running = self._requests.get(request_id)
        return len(running.request.prompt) + running.request.max_tokens if running else 0

    def mark_of(self, adapter: Adapter) -> int:
        """What stands for an adapter in the tokens that pages of the cache are told by."""
        return self._marks.of(adapter)

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
            self._broken.add(output.request_id)
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
