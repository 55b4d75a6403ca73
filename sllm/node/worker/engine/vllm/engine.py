"""The engine on vLLM: its core, stepped by one thread of ours."""

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from vllm.v1.engine.core import EngineCore

from sllm.node.worker.engine.adapters import Adapter
from sllm.node.worker.engine.group import ALONE, Group
from sllm.node.worker.engine.interface import (
    Capacity,
    Counters,
    EngineRequest,
    NewToken,
    Step,
)
from sllm.node.worker.engine.niceness import stand_back
from sllm.node.worker.engine.pages import EnginePages, Prefix
from sllm.node.worker.engine.prompt_scores import PromptScores
from sllm.node.worker.engine.threads import threads_for
from sllm.node.worker.engine.vllm.adapters import AdapterReader
from sllm.node.worker.engine.vllm.ahead import Ahead
from sllm.node.worker.engine.vllm.background import standing_aside
from sllm.node.worker.engine.vllm.batch import Batch, Running
from sllm.node.worker.engine.vllm.config import VllmModel, engine_config, max_batch_tokens
from sllm.node.worker.engine.vllm.core_requests import core_request, finish_reason, params_of
from sllm.node.worker.engine.vllm.interruption import Interruptions
from sllm.node.worker.engine.vllm.loader import MadeReady
from sllm.node.worker.engine.vllm.making import making
from sllm.node.worker.engine.vllm.pages import VllmPages, can_keep, withhold
from sllm.node.worker.engine.vllm.prompts import SCORED, PromptReader
from sllm.node.worker.engine.vllm.ranks import Filled, begin, executor_of
from sllm.node.worker.engine.vllm.sampler import sampler_of
from sllm.node.worker.ready_made.contents import ReadyMade

_STOP_TIMEOUT = 5.0
"""Seconds that a step under way has to end."""
Command = Callable[[], None]


class VllmEngine:
    """See `Engine`."""

    def __init__(self, model: VllmModel, capacity: Capacity, group: Group = ALONE) -> None:
        self.counters = Counters()
        self._model = model
        self._capacity = capacity
        self._group = group
        self.read_bytes: tuple[int, ...] = ()
        """Of the weights, by each rank, once it has started."""
        self._threads = threads_for(model.weight_bytes, model.ranks)
        self._batch = Batch()
        self._prompts = PromptReader(self._batch.of_key)
        self._adapters = AdapterReader(self._batch.held)
        self._ahead = Ahead(max_batch_tokens(capacity))
        self._commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._coming: set[str] = set()
        """Requests that somebody waits for, until the core has them."""
        self.interruptions = Interruptions(self._batch, lambda: bool(self._coming))
        self._core: Any = None
        self._pages: VllmPages | None = None
        self._thread: threading.Thread | None = None
        self._steps = self._generated = self._cancelled = 0
        self._has_stepped = True
        """Whether the last step has computed anything."""

    @property
    def pages(self) -> EnginePages | None:
        """See `Engine.pages`."""
        return self._pages

    @property
    def adapted_layers(self) -> Mapping[str, tuple[int, int]]:
        """See `Engine.adapted_layers`."""
        return self._adapters.layers

    def start(
        self, on_step: Callable[[Step], None], on_failure: Callable[[Exception], None]
    ) -> None:
        """See `Engine.start`."""
        self._on_step = on_step
        self._core = self._make_core()
        begin(self._group)
        if can_keep(self._core):
            self._pages = VllmPages(self._core, self._batch, self._hashes)
            self._pages.share(self._capacity)
            self._pages.guard()
        else:
            withhold(self._core, self._capacity.more_kv_tokens)
        self.interruptions.attach(self._core, self._pages.changing if self._pages else nullcontext)
        self._prompts.attach(self._core.model_executor.driver_worker.worker.model_runner)
        if self._capacity.takes_adapters:
            self._adapters.attach(self._core)
        self._thread = threading.Thread(target=self._run, args=(on_failure,), name="engine")
        self._thread.start()

    def submit(self, request: EngineRequest) -> None:
        """See `Engine.submit`."""
        running = self._batch.add(request)
        if running.is_awaited:
            self._coming.add(request.request_id)
        self._commands.put(partial(self._submit, running))

    def cancel(self, request_id: str) -> None:
        """See `Engine.cancel`."""
        if running := self._batch.drop(request_id):
            self._commands.put(partial(self._let_go, running, cancelled=True))

    def finish(self, request_id: str) -> None:
        """See `Engine.finish`."""
        if running := self._batch.drop(request_id):
            self._commands.put(partial(self._let_go, running, cancelled=False))

    def stop(self) -> None:
        """See `Engine.stop`."""
        self._commands.put(None)
        if self._thread:
            self._thread.join(_STOP_TIMEOUT)

    def make_ready(self) -> ReadyMade:
        """What vLLM has made of the weights before it packs them. It is not to be started then.

        Raises:
            UnsupportedModel: They are not kept in this way; see `make_ready` in `ready_made.py`.
        """
        try:
            self._make_core(making_ready=True)
        except MadeReady as made:
            return made.ready
        raise RuntimeError("vLLM has made its model without filling it with weights")

    def _make_core(self, *, making_ready: bool = False) -> Any:
        sampler = sampler_of(self._batch.of_key, self._model.ranks)
        others: list[Filled] = []
        executor = executor_of(self._group, others.append)
        config = engine_config(self._model, self._capacity, sampler, executor)
        with making(self._model, making_ready=making_ready) as loading:
            core = EngineCore(config, executor, log_stats=False)
        self.read_bytes = (loading.read_bytes, *(one.read_bytes for one in others))
        return core

    def _run(self, on_failure: Callable[[Exception], None]) -> None:
        stand_back()
        torch.set_num_threads(self._threads)
        try:
            while self._take_commands():
                self._step()
        except Exception as error:
            on_failure(error)

    def _take_commands(self) -> bool:
        """Does what has been asked for; waits while there is nothing to compute. False: the end."""
        while self._commands.qsize() or not self._has_work():
            command = self._commands.get()
            if command is None:
                return False
            command()
            del command  # nothing of a request is held while there is nothing to do
        return True

    def _has_work(self) -> bool:
        return len(self._ahead) > 0 or self._core.scheduler.has_requests()

    def _submit(self, running: Running) -> None:
        request = running.request
        self._coming.discard(request.request_id)
        if not self._batch.wants(running):
            return
        if request.gives_way and not request.images:
            running.computed = self._cached(request)
            self._ahead.add(running)
        else:
            # With images at once: a part would end within one, whose model sees it as a whole.
            running.computed = len(request.prompt)
            self._enter(running, request.prompt, request.max_tokens, request.stop_token_ids)

    def _cached(self, asked: EngineRequest) -> int:
        """Tokens at the beginning of a prompt that need not be computed."""
        request = self._probe(asked.prompt, asked.adapter)
        _, tokens, *_ = self._core.scheduler.kv_cache_manager.get_computed_blocks(request)
        return int(tokens)

    def _hashes(self, prefix: Prefix) -> Sequence[Any]:
        """By which vLLM knows a prefix's whole pages. In any thread."""
        hashes: list[Any] = self._probe(prefix.tokens, prefix.adapter).block_hashes
        return hashes

    def _probe(self, prompt: Sequence[int], adapter: Adapter | None) -> Any:
        """A request that the core is asked about, and never has."""
        probe = core_request("", prompt, params_of("", 1), adapter)
        request, _ = self._core.preprocess_add_request(probe)
        return request

    def _let_go(self, running: Running, *, cancelled: bool) -> None:
        self._cancelled += cancelled
        if running.key:
            self._core.abort_requests([running.key])
        self._forget(running)
        self._report()

    def _enter(
        self,
        running: Running,
        prompt: Sequence[int],
        max_tokens: int,
        stop_token_ids: frozenset[int] = frozenset(),
    ) -> None:
        key = self._batch.enter(running)
        params = params_of(key, max_tokens, stop_token_ids)
        if (asked := running.request.prompt_logprobs) is not None:
            params.skip_reading_prefix_cache = True
            if self._prompts.attached:
                params.extra_args[SCORED] = True
                running.scores = PromptScores(prompt, asked)
            else:
                params.prompt_logprobs = asked
        request = core_request(key, prompt, params, running.request.adapter)
        request.mm_features = list(running.request.images) or None
        self._core.add_request(*self._core.preprocess_add_request(request))

    def _step(self) -> None:
        if part := self._ahead.next_part(self._batch.in_core()):
            part.running.computed = part.end
            self._enter(part.running, part.running.request.prompt[: part.end], max_tokens=1)
        with standing_aside(self._core.scheduler, self._batch, only_if=self._has_stepped):
            step = self.interruptions.step()
        if step is None:
            return
        outputs, executed = step
        self._has_stepped = executed
        self._steps += executed
        ours = outputs[0].outputs if 0 in outputs else ()
        broken = tuple(name for output in ours if (name := self._break(output)))
        tokens = tuple(token for output in ours if (token := self._take(output)))
        self._generated += len(tokens)
        if executed:
            self._report(tokens, broken)

    def _break(self, output: Any) -> str | None:
        """Ends a request whose logits were no numbers, and gives its id."""
        running = self._batch.of_key(output.request_id)
        if running is None or not running.broken:
            return None
        self._core.abort_requests([running.key])
        self._forget(running)
        return running.request.request_id

    def _forget(self, running: Running) -> None:
        """Of a request that has ended, or is to end, nothing is kept."""
        self._batch.drop(running.request.request_id)
        self._ahead.drop(running)
        if self._pages:
            self._pages.let_go(running.request.request_id)
        if running.key:
            self._batch.leave(running)

    def _take(self, output: Any) -> NewToken | None:
        running = self._batch.of_key(output.request_id)
        if running is None or not output.new_token_ids:
            return None  # cancelled while the step was under way
        running.note(output)
        (token_id,) = output.new_token_ids
        finish = finish_reason(output)
        if finish and running.is_part:
            self._batch.leave(running)
            return None
        if finish:
            self._forget(running)
        return running.token(token_id, finish)

    def _report(self, tokens: tuple[NewToken, ...] = (), broken: tuple[str, ...] = ()) -> None:
        running, waiting = self._core.scheduler.get_request_counts()
        self.counters = Counters(
            steps=self._steps,
            generated_tokens=self._generated,
            running_requests=running,
            waiting_requests=waiting + len(self._ahead),
            cancelled_requests=self._cancelled,
        )
        self._on_step(Step(tokens, self.counters, broken))
