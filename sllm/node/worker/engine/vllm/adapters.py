"""Low-rank adapters on vLLM: its own modules, several layers in one, and which rows are whose.

vLLM has kernels of its own for adapters, which on processors gather a copy of an adapter's weights
for every row, and want memory for as many adapters as there may be from the start on.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate, pairwise
from typing import Any

from vllm.model_executor.layers.linear import LinearBase

from sllm.node.worker.engine.adapters import (
    AdaptedModule,
    AdapterHooks,
    Part,
    Span,
    linear_modules,
)
from sllm.node.worker.engine.vllm.batch import Running

_EXPERTS = ".experts."
"""Layers that see some of a step's rows alone."""


class AdapterReader:
    """Belongs to the engine's thread, once it is attached."""

    def __init__(self, running: Callable[[str], Running | None]) -> None:
        """`running` gives the request of an id in the core, also one that was dropped."""
        self._running = running
        self._hooks = AdapterHooks()

    @property
    def layers(self) -> Mapping[str, tuple[int, int]]:
        """Inputs and outputs of the layers that adapters may add to, once it is attached."""
        return self._hooks.layers

    def attach(self, core: Any) -> None:
        """Has a core's model be added to."""
        runner = core.model_executor.driver_worker.worker.model_runner
        model = runner.model
        self._hooks.attach(model, adapted_modules(model))
        model.register_forward_pre_hook(lambda *_: self._hooks.expect(self._spans(runner)))

    def _spans(self, runner: Any) -> Iterator[Span]:
        """Whose rows those of a step are: its pages are found again, whoever wants its tokens."""
        starts = runner.query_start_loc.np
        for index, key in enumerate(runner.input_batch.req_ids):
            running = self._running(key)
            if running and running.request.adapter:
                begin, end = int(starts[index]), int(starts[index + 1])
                yield Span(begin, end, running.request.adapter)


def adapted_modules(model: Any) -> list[AdaptedModule]:
    """VLLM's linear layers that see each row of a step, each with what it is in transformers."""
    packed: Mapping[str, list[str]] = getattr(model, "packed_modules_mapping", {})
    return [
        AdaptedModule(module, tuple(_parts(name, module, packed)))
        for name, module in linear_modules(model, lambda one: isinstance(one, LinearBase))
        if _EXPERTS not in name
    ]


def _parts(name: str, module: Any, packed: Mapping[str, list[str]]) -> Iterator[Part]:
    within, _, last = name.rpartition(".")
    sizes = list(getattr(module, "output_sizes", None) or [module.output_size])
    names = packed.get(last, [])
    if len(names) != len(sizes):
        names, sizes = [last], [sum(sizes)]
    for layer, (begin, end) in zip(names, pairwise(accumulate(sizes, initial=0)), strict=True):
        yield Part(f"{within}.{layer}" if within else layer, module.input_size, begin, end)
