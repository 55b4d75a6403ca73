"""The engine on transformers' continuous batching: paged cache, prefix sharing, one thread."""

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from functools import partial
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching.cache import group_layers_by_attn_type
from transformers.generation.continuous_batching.continuous_api import BackgroundThreadStatus
from transformers.generation.continuous_batching.scheduler import SCHEDULER_MAPPING

from sllm.errors import NoCapacity
from sllm.node.worker.engine.adapted_module import adapted_modules
from sllm.node.worker.engine.attention import attend_as_models_do, attend_by_sequence
from sllm.node.worker.engine.batch import Batch, Router, Sampler
from sllm.node.worker.engine.interface import Capacity, Counters, EngineRequest, Step
from sllm.node.worker.engine.interruption import BrokenOff
from sllm.node.worker.engine.keeping_scheduler import PAGES_LEAVE, KeepingScheduler
from sllm.node.worker.engine.niceness import stand_back
from sllm.node.worker.engine.paged_cache import SPARE_PAGES, PagedCache
from sllm.node.worker.engine.pages import EnginePages
from sllm.node.worker.engine.threads import threads_for
from sllm.node.worker.engine.unfilled_masks import UnfilledMasks
from sllm.node.worker.engine.untouched_zeros import UntouchedZeros

PAGE_TOKENS = 16
"""Tokens in a block of the KV cache: what is allocated, and shared between prompts, at once."""
_MAX_BATCH_TOKENS = {"cpu": 256, "cuda": 2048}
"""Tokens of prompts and generations in one step: longer prompts take several steps."""
_STOP_TIMEOUT = 5.0
"""Seconds that a step under way has to end."""
_SCHEDULER = "sllm"


class TransformersEngine:
    """See `Engine`."""

    def __init__(self, model: PreTrainedModel, capacity: Capacity) -> None:
        self._model = model
        self._capacity = capacity if _may_resize(model) else replace(capacity, more_kv_tokens=0)
        self._batch: Batch | None = None
        self._manager: Any = None
        self._watcher: threading.Thread | None = None
        self._stopping = False
        self._pages: PagedCache | None = None

    @property
    def counters(self) -> Counters:
        """As of the latest step."""
        return self._batch.counters if self._batch else Counters()

    @property
    def adapted_layers(self) -> Mapping[str, tuple[int, int]]:
        """See `Engine.adapted_layers`."""
        return self._batch.adapters.layers if self._batch else {}

    @property
    def pages(self) -> EnginePages | None:
        """See `Engine.pages`."""
        return self._pages

    def start(
        self, on_step: Callable[[Step], None], on_failure: Callable[[Exception], None]
    ) -> None:
        """See `Engine.start`."""
        attend_as_models_do()
        if self._model.device.type == "cpu":
            attend_by_sequence()
        vocabulary = self._model.config.get_text_config().vocab_size
        batch = self._batch = Batch(on_step, vocabulary)
        fail = partial(self._fail, on_failure)
        self._manager = self._model.init_continuous_batching(
            GenerationConfig(do_sample=False, eos_token_id=-1),  # eos: each request brings its own
            _config(self._capacity, self._model.device.type),
        )
        self._manager.logit_processor = Sampler(batch)
        batch.prompts.attach(self._model)
        if self._capacity.takes_adapters:
            batch.adapters.attach(self._model, adapted_modules(self._model))
        self._manager.output_router = Router(batch, fail)
        if _may_repeat(self._model):
            self._break_off(batch)
        SCHEDULER_MAPPING[_SCHEDULER] = partial(KeepingScheduler, batch, self._take_pages)
        try:
            with UntouchedZeros(), UnfilledMasks():
                self._manager.warmup()  # makes the cache, here and not in the engine's thread
                # Which would fill a mask over all of it once more. It is as new.
                self._manager.batch_processor.reset = lambda: None
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise NoCapacity(f"no memory for the KV cache: {error}") from error
        if self._pages:
            self._pages.share(self._capacity)
        with ThreadPoolExecutor(1) as starter:
            starter.submit(self._begin).result()
        self._watcher = threading.Thread(target=self._watch, args=(fail,), name="engine-watch")
        self._watcher.start()

    def submit(self, request: EngineRequest) -> None:
        """See `Engine.submit`."""
        self._started_batch.add(request)
        self._manager.add_request(
            list(request.prompt),
            request_id=request.request_id,
            # The batch ends what is computed ahead, so that its cache stays.
            max_new_tokens=request.max_tokens + request.gives_way,
            streaming=True,
            eos_token_id=list(request.stop_token_ids),
        )

    def cancel(self, request_id: str) -> None:
        """See `Engine.cancel`."""
        if self._started_batch.drop(request_id):
            self._manager.cancel_request(request_id)

    def finish(self, request_id: str) -> None:
        """See `Engine.finish`."""
        if self._started_batch.drop(request_id, finished=True):
            self._manager.cancel_request(request_id)

    def stop(self) -> None:
        """See `Engine.stop`."""
        self._stopping = True
        if self._watcher:
            # The manager's own `stop` would pull the batch from under a step.
            status = self._manager.background_thread_status
            status.request_stop(BackgroundThreadStatus.HARD_STOP, 0)
            self._watcher.join(_STOP_TIMEOUT)
        if self._batch:
            self._batch.prompts.detach()
            self._batch.adapters.detach()
            self._batch.lookout.detach()

    @property
    def _started_batch(self) -> Batch:
        assert self._batch is not None, "the engine has not been started"
        return self._batch

    def _take_pages(self, pages: PagedCache | None) -> None:
        self._pages = pages

    def _begin(self) -> None:
        """Starts the engine's thread, which inherits the niceness of the one that starts it."""
        weights = sum(one.nbytes for one in self._model.parameters())
        torch.set_num_threads(threads_for(weights))  # by which whoever computes first goes
        stand_back()
        self._manager.start()

    def _break_off(self, batch: Batch) -> None:
        """Has steps that nobody waits for be broken off for whoever comes, and done again."""
        batch.lookout.attach(self._model)
        body = self._manager._generation_loop_body

        def unless_left(processor: Any, **options: Any) -> Any:
            try:
                return body(processor, **options)
            except BrokenOff:
                processor.scheduler.take_back()
                return True

        self._manager._generation_loop_body = unless_left

    def _watch(self, fail: Callable[[Exception], None]) -> None:
        self._manager.join(time.perf_counter())
        error = self._manager.background_thread_status.fatal_error
        fail(error or RuntimeError("the engine's thread has ended"))

    def _fail(self, on_failure: Callable[[Exception], None], error: Exception) -> None:
        if not self._stopping:
            on_failure(error)


def _may_repeat(model: PreTrainedModel) -> bool:
    """Whether a step that was left may be done again.

    On a device layers are under way before anybody looks. Where windows slide, what a step has
    written may be in the place of what it has read.
    """
    config = model.config.get_text_config()
    windows = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    return model.device.type == "cpu" and not any(windows)


def _may_resize(model: PreTrainedModel) -> bool:
    """Whether rows of its cache can be withheld: those that `KeepingScheduler` has pages of."""
    layers = group_layers_by_attn_type(model.config.get_text_config())
    return model.device.type == "cpu" and PAGES_LEAVE and set(layers) == {"full_attention"}


def _config(capacity: Capacity, device: str) -> ContinuousBatchingConfig:
    known = {field.name for field in fields(ContinuousBatchingConfig)}
    # Before transformers 5.18 a page was called a block, and flash attention was left to the model.
    page = {"page_size": PAGE_TOKENS} if "page_size" in known else {"block_size": PAGE_TOKENS}
    attention = {"auto_switch_to_flash": False} if "auto_switch_to_flash" in known else {}
    return ContinuousBatchingConfig(
        num_blocks=capacity.pool_tokens // PAGE_TOKENS + SPARE_PAGES,
        max_batch_tokens=max(_MAX_BATCH_TOKENS[device], capacity.max_requests),
        max_requests_per_batch=capacity.max_requests,
        max_memory_percent=1.0,  # the node has set memory aside for the cache
        max_blocks_per_request=0,
        # The sampler runs Python for every step, which no graph holds, and each step must know the
        # tokens of the last.
        use_cuda_graph=False,
        use_async_batching=False,
        scheduler_type=_SCHEDULER,
        **page,
        **attention,
    )
