"""Steps of vLLM's that are broken off: who has come does not wait for one that nobody waits for.

The core is put back to where it was: what the step has written into the cache is written there
again when it is done anew. What others could have found of it until then is not to be found.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from vllm.platforms import current_platform
from vllm.v1.request import Request

from sllm.node.worker.engine.interruption import BrokenOff, Lookout
from sllm.node.worker.engine.vllm.batch import Batch

Changing = Callable[[], AbstractContextManager[None]]


class Interruptions:
    """Belongs to the engine's thread."""

    def __init__(self, batch: Batch, has_come: Callable[[], bool]) -> None:
        """Breaks nothing off yet.

        Args:
            batch: the core's requests.
            has_come: whether there is one that somebody waits for, of which the core does not know.
        """
        self.lookout = Lookout(has_come)
        self._batch = batch
        self._core: Any = None
        self._schedule: Callable[..., Any] | None = None
        self._changing: Changing = nullcontext
        self._plan: Any = None
        """Of the step under way."""

    def attach(self, core: Any, changing: Changing = nullcontext) -> None:
        """Looks between the layers of a core's model from now on, if its steps may be repeated.

        On a device layers are under way before anybody looks. With several ranks all would have to
        leave, and layers that keep a state (Mamba) have changed it. What is put back to where it
        was is changed within `changing`.
        """
        self._core, self._changing = core, changing
        scheduler = core.scheduler
        if not current_platform.is_cpu() or core.vllm_config.parallel_config.world_size > 1:
            return
        if scheduler.has_mamba_layers or scheduler.connector or scheduler.defer_block_free:
            return
        self._schedule, scheduler.schedule = scheduler.schedule, self._scheduled
        self.lookout.attach(core.model_executor.driver_worker.worker.model_runner.model)

    def step(self) -> Any:
        """What a step of the core gives; None: it was broken off."""
        try:
            return self._core.step()
        except BrokenOff:
            with self._changing():
                self._take_back(self._plan)
            return None
        finally:
            self._plan = None

    def _scheduled(self, *args: Any) -> Any:
        assert self._schedule is not None
        self._plan = self._schedule(*args)
        self.lookout.begin(map(self._may_be_left, self._plan.num_scheduled_tokens))
        return self._plan

    def _may_be_left(self, key: str) -> bool:
        """Whether nobody waits for a request; what has images keeps more than pages."""
        running = self._batch.held(key)
        if running is None:
            return False
        return running.request.background and not running.request.images

    def _take_back(self, plan: Any) -> None:
        """Puts the scheduler back to where it was before a step."""
        scheduler = self._core.scheduler
        requests = {key: scheduler.requests[key] for key in plan.num_scheduled_tokens}
        for key, request in requests.items():
            request.num_computed_tokens -= plan.num_scheduled_tokens[key]
            request.num_in_flight_tokens -= plan.num_scheduled_tokens[key]
            _hide_pages(scheduler.kv_cache_manager, request)
        begun = {one.req_id for one in plan.scheduled_new_reqs}
        # Their beginnings may be in pages that others would have computed in this step.
        for key in reversed(requests):
            if key in begun | plan.scheduled_cached_reqs.resumed_req_ids:
                scheduler.running.remove(requests[key])
                scheduler._preempt_request(requests[key], time.monotonic())


def _hide_pages(manager: Any, request: Request) -> None:
    """Has nobody find a request's pages that have not been computed."""
    for one in manager.coordinator.single_type_managers:
        known = one.num_cached_block.get(request.request_id, 0)
        computed = request.num_computed_tokens // one.block_size
        for page in one.req_to_blocks[request.request_id][computed:known]:
            manager.block_pool._maybe_evict_cached_block(page)
        if known > computed:
            one.num_cached_block[request.request_id] = computed
