"""Layers that another process computes until this one has their weights.

This process keeps the whole KV cache: keys and values of these layers come back with each pass,
and are written where the layers themselves would have. So it goes on by itself from one pass to the
next, once their weights are there, and from one layer to the next, if nobody computes them any
more.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from sllm.node.worker.layers.passes import Answer, LayerCache, Pass
from sllm.node.worker.model.arrivals import Arrivals, chunks_of
from sllm.node.worker.model.mapping import Mapping as Memory
from sllm.node.worker.model.parts import Part

Send = Callable[[Pass], None]
"""Sends a pass to whoever computes it. Called in the engine's thread, and returns at once."""


class BorrowedLayers:
    """A range of layers, which stand aside while others compute them.

    `is_own`, `ready`, `take` and `lost` may be called in any thread; the rest belongs to the
    engine's.
    """

    def __init__(self, layers: range, parts: Sequence[Part], arrivals: Arrivals, memory: Memory):
        """Stands in the place of the layers, before anything runs.

        Args:
            layers: which of the model's.
            parts: the same, in their order.
            arrivals: tells which weights are there.
            memory: that they lie in.
        """
        self.layers = layers
        self.dtype = next(parts[0].module.parameters()).dtype
        """In which passes are sent and answered."""
        attention: Any = parts[0].module.self_attn
        self._cache_shape = (attention.config.num_key_value_heads, int(attention.head_dim))
        """Heads of keys and values, and the size of each."""
        self._arrivals = arrivals
        self._parts = parts
        self._needed = [frozenset(chunks_of(part, memory)) for part in parts]
        self._all = frozenset[int]().union(*self._needed)
        self._send: Send | None = None
        self._on_end: Callable[[], None] = lambda: None
        self._answers: deque[Answer] = deque()
        self._lost = False
        self._number = 0
        """Of the last pass that was sent."""
        self._is_away = False
        """Whether the pass under way was computed elsewhere."""
        for index, part in enumerate(parts):
            self._stand_in(index, part.module)

    @property
    def is_own(self) -> bool:
        """Whether their weights are all here: no pass is sent any more that has not begun."""
        return self._arrivals.has(self._all)

    # --- whoever passes on ----------------------------------------------------------------------

    def ready(self, send: Send, on_end: Callable[[], None]) -> None:
        """Tells that passes are computed from now on; `on_end`: when none is sent any more."""
        self._send, self._on_end = send, on_end
        self._arrivals.look_again()

    def take(self, answer: Answer) -> None:
        """Takes what comes of a pass."""
        self._answers.append(answer)
        self._arrivals.look_again()

    def lost(self) -> None:
        """Tells that nobody computes them any more: each waits for its own weights."""
        self._lost = True
        self._arrivals.look_again()

    # --- the engine's thread --------------------------------------------------------------------

    def _stand_in(self, index: int, layer: Any) -> None:
        """Replaces the forward function of a layer, for as long as its weights are not there."""
        original = layer.forward

        def forward(hidden: torch.Tensor, *args: Any, **given: Any) -> torch.Tensor:
            if index == 0:
                computed = self._elsewhere(hidden, given)
                self._is_away = computed is not None
                if computed is not None:
                    return computed
            elif self._is_away:
                return hidden
            self._arrivals.wait_for(self._needed[index])
            output: torch.Tensor = original(hidden, *args, **given)
            return output

        layer.forward = forward

    def _elsewhere(self, hidden: torch.Tensor, given: Mapping[str, Any]) -> torch.Tensor | None:
        """What the layers make of hidden states. None: this process sees to it itself."""
        self._arrivals.wait_for(self._all, lambda: self._lost or self._send is not None)
        if self.is_own:
            self._step_aside()
            return None
        return None if self._lost or self._send is None else self._ask(self._send, hidden, given)

    def _ask(
        self, send: Send, hidden: torch.Tensor, given: Mapping[str, Any]
    ) -> torch.Tensor | None:
        self._number += 1
        send(Pass.of(self._number, hidden, given))
        while True:
            self._arrivals.wait_for(self._all, lambda: self._lost or bool(self._answers))
            if not self._answers:
                return None  # all weights have come meanwhile, or nobody answers any more
            answer = self._answers.popleft()
            if answer.number != self._number:
                continue  # late, of a pass that was computed here in the end
            if not self._fits(answer, hidden):
                self._lost = True
                return None
            for cache in answer.caches:
                _write(cache, given)
            if answer.hidden is not None:
                return answer.hidden.view_as(hidden)

    def _fits(self, answer: Answer, hidden: torch.Tensor) -> bool:
        """Whether an answer is one to this pass, whatever its numbers are."""
        if answer.hidden is not None and answer.hidden.numel() != hidden.numel():
            return False
        shape = self._cache_shape
        return all(
            one.layer in self.layers and one.keys.shape == (1, shape[0], hidden.shape[1], shape[1])
            for one in answer.caches
        )

    def _step_aside(self) -> None:
        for part in self._parts:
            del part.module.forward  # that of its class is seen again
        self._on_end()


def _write(cache: LayerCache, given: Mapping[str, Any]) -> None:
    """Puts keys and values where the layer would have: with nothing to read, it only writes."""
    told = {**given, "read_index": [one[:0] for one in given["read_index"]]}
    given["cache"].update(
        key_states=cache.keys, value_states=cache.values, layer_idx=cache.layer, kwargs=told
    )
