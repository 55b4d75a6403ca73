"""The engine on vLLM: its core, stepped by one thread of ours."""

import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from vllm import SamplingParams
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.core import EngineCore
from vllm.v1.executor import Executor

from sllm import machine
from sllm.errors import NoCapacity
from sllm.node.worker.engine.interface import (
    Capacity,
    Counters,
    EngineRequest,
    FinishReason,
    NewToken,
    Step,
)
from sllm.node.worker.engine.prompt_scores import PromptScores
from sllm.node.worker.engine.untouched_zeros import UntouchedZeros
from sllm.node.worker.engine.vllm.adapters import AdapterReader
from sllm.node.worker.engine.vllm.ahead import Ahead
from sllm.node.worker.engine.vllm.background import standing_aside
from sllm.node.worker.engine.vllm.batch import Batch, Running
from sllm.node.worker.engine.vllm.config import VllmModel, engine_config, max_batch_tokens
from sllm.node.worker.engine.vllm.loader import MadeReady, loading
from sllm.node.worker.engine.vllm.prompts import PromptReader
from sllm.node.worker.engine.vllm.sampler import KEY, sampler_of
from sllm.node.worker.ready_made.contents import ReadyMade

_STOP_TIMEOUT = 5.0
"""Seconds that a step under way has to end."""
_NICENESS = 10
"""Of the engine's threads; see setpriority(2). Where processors are short, whatever starts, and
whoever passes tokens on, goes before: a start costs little, and how long it takes is foretold."""

_SMALL_BYTES = 32 << 20
"""Of weights. Steps of a model that small are over before threads have helped one another."""

_set_num_threads = torch.set_num_threads
"""vLLM puts a function in its place that does nothing."""

Command = Callable[[], None]


class VllmEngine:
    """See `Engine`."""

    def __init__(self, model: VllmModel, capacity: Capacity) -> None:
        self.counters = Counters()
        self._model = model
        self._capacity = capacity
        self._threads = threads_for(model.weight_bytes)
        self._batch = Batch()
        self._prompts = PromptReader(self._batch.of_key)
        self._adapters = AdapterReader(self._batch.held)
        self._ahead = Ahead(max_batch_tokens(capacity))
        self._commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._core: Any = None
        self._thread: threading.Thread | None = None
        self._steps = self._generated = self._cancelled = 0
        self._has_stepped = True
        """Whether the last step has computed anything."""

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
        self._prompts.attach(self._core)
        if self._capacity.takes_adapters:
            self._adapters.attach(self._core)
        self._thread = threading.Thread(target=self._run, args=(on_failure,), name="engine")
        self._thread.start()

    def submit(self, request: EngineRequest) -> None:
        """See `Engine.submit`."""
        self._commands.put(partial(self._submit, self._batch.add(request)))

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
        _allow_tiles()
        config = engine_config(self._model, self._capacity, sampler_of(self._batch.of_key))
        try:
            with UntouchedZeros(), loading(self._model.weights, making_ready=making_ready):
                return EngineCore(config, Executor.get_class(config), log_stats=False)
        except (MemoryError, torch.OutOfMemoryError, OSError) as error:
            raise NoCapacity(f"no memory for the KV cache: {error}") from error
        except ValueError as error:
            # What vLLM says of memory that it cannot have, by measure or by reckoning.
            if "memory" not in str(error):
                raise
            raise NoCapacity(f"no memory for the KV cache: {error}") from error
        finally:
            torch.set_num_threads = _set_num_threads

    def _run(self, on_failure: Callable[[Exception], None]) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
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
        if not self._batch.wants(running):
            return
        request = running.request
        if request.gives_way:
            running.computed = self._cached(request)
            self._ahead.add(running)
        else:
            self._enter(running, request.prompt, request.max_tokens, request.stop_token_ids)

    def _cached(self, asked: EngineRequest) -> int:
        """Tokens at the beginning of a prompt that need not be computed."""
        probe = _core_request("", asked.prompt, _params("", 1), _salt(asked))
        request, _ = self._core.preprocess_add_request(probe)
        _, tokens, *_ = self._core.scheduler.kv_cache_manager.get_computed_blocks(request)
        return int(tokens)

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
        params = _params(key, max_tokens, stop_token_ids)
        if (asked := running.request.prompt_logprobs) is not None:
            params.skip_reading_prefix_cache = True
            if self._prompts.attached:
                running.scores = PromptScores(prompt, asked)
            else:
                params.prompt_logprobs = asked
        request = _core_request(key, prompt, params, _salt(running.request))
        self._core.add_request(*self._core.preprocess_add_request(request))

    def _step(self) -> None:
        if part := self._ahead.next_part(self._batch.in_core()):
            part.running.computed = part.end
            self._enter(part.running, part.running.request.prompt[: part.end], max_tokens=1)
        with standing_aside(self._core.scheduler, self._batch, only_if=self._has_stepped):
            outputs, executed = self._core.step()
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
        if running.key:
            self._batch.leave(running)

    def _take(self, output: Any) -> NewToken | None:
        running = self._batch.of_key(output.request_id)
        if running is None or not output.new_token_ids:
            return None  # cancelled while the step was under way
        running.note(output)
        (token_id,) = output.new_token_ids
        finish = _finish_reason(output)
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


def _params(
    key: str, max_tokens: int, stop_token_ids: frozenset[int] = frozenset()
) -> SamplingParams:
    return SamplingParams(
        temperature=0.0,  # the sampler chooses
        max_tokens=max_tokens,
        stop_token_ids=list(stop_token_ids),
        ignore_eos=True,  # each request brings its own
        detokenize=False,
        extra_args={KEY: key},
    )


def _salt(request: EngineRequest) -> str | None:
    """What pages of the cache are told by beside their tokens: what they were computed with."""
    return request.adapter.name if request.adapter else None


def _core_request(
    key: str, prompt: Sequence[int], params: SamplingParams, salt: str | None = None
) -> EngineCoreRequest:
    return EngineCoreRequest(
        request_id=key,
        prompt_token_ids=list(prompt),
        mm_features=None,
        sampling_params=params,
        pooling_params=None,
        arrival_time=time.time(),
        lora_request=None,
        cache_salt=salt,
        data_parallel_rank=None,
    )


def _allow_tiles() -> None:
    """Asks the kernel for the tile registers of AMX, which vLLM's attention uses unasked.

    A process, and what it forks, is killed by its first such instruction otherwise; see
    arch_prctl(2), `ARCH_REQ_XCOMP_PERM`. Other libraries ask for themselves, if they are used.

    Raises:
        RuntimeError: The kernel refuses them.
    """
    if torch.cpu._is_amx_tile_supported() and not torch.cpu._init_amx():
        raise RuntimeError("the kernel refuses the tile registers that vLLM's kernels would use")


def threads_for(weight_bytes: int) -> int:
    """Threads that a model's steps are divided among: all that there are, or one."""
    return 1 if weight_bytes <= _SMALL_BYTES else machine.processors()


def _finish_reason(output: Any) -> FinishReason | None:
    if not output.finished:
        return None
    reason = FinishReason.__members__.get(output.finish_reason.name)
    if reason is None:
        raise RuntimeError(f"vLLM has ended a request for another reason: {output.finish_reason}")
    return reason
