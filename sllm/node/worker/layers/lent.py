"""Layers that this process computes for another one."""

from collections.abc import Callable
from typing import Any, Final

import torch

from sllm.errors import InvalidArgument
from sllm.node.worker.layers.decoder import layers_of
from sllm.node.worker.layers.passes import Answer, LayerCache, Pass

ANSWER_BYTES: Final = 1 << 20
"""Of keys and values, that are sent without waiting for the rest: a token's go in one message."""


class LentLayers:
    """Belongs to the thread that computes. The engine beside it has no requests.

    Its cache has whatever the borrower's has of these layers: no pass is left out.
    """

    def __init__(self, model: Any, cache: Any, layers: range) -> None:
        """Takes layers of a model whose engine has been started.

        Args:
            model: the whole.
            cache: transformers' own, as its engine has made it; as large as the borrower's.
            layers: which, from 0.

        Raises:
            InvalidArgument: The model does not have these layers, or is not run so.
        """
        found = layers_of(model)
        if found is None or not layers or layers.stop > len(found):
            raise InvalidArgument(f"layers {layers.start} to {layers.stop} cannot be computed here")
        self.dtype: torch.dtype = model.dtype
        """In which passes come, and are answered."""
        self.weight_bytes = sum(one.nbytes for one in model.parameters())
        """Of the whole model."""
        self._model = model
        self._cache = cache
        self._layers = [(index, found[index]) for index in layers]
        self._update = cache.update
        self._keys: Any = None
        self._values: Any = None
        """Of the last layer's pass."""
        # Attention asks whether a cache is of transformers' class: another one will not do.
        cache.update = self._keep

    @torch.no_grad()
    def compute(self, one: Pass, tell: Callable[[Answer], None]) -> Answer:
        """Runs a batch through the layers; `tell` gets what is there of a larger answer.

        Raises:
            InvalidArgument: The pass does not fit the model or its cache.
            SllmError: Weights that a layer waits for do not come.
        """
        try:
            return self._run(one, tell)
        except (IndexError, RuntimeError, ValueError) as error:
            raise InvalidArgument(f"the pass does not fit what computes it: {error}") from error

    def _run(self, one: Pass, tell: Callable[[Answer], None]) -> Answer:
        hidden, arguments = one.hidden, one.arguments(self._model, self._cache)
        caches: list[LayerCache] = []
        for index, layer in self._layers:
            hidden = layer(hidden, **arguments)
            caches.append(LayerCache(index, self._keys, self._values))
            if len(caches) * 2 * self._keys.nbytes >= ANSWER_BYTES:
                tell(Answer(one.number, tuple(caches), None))
                caches.clear()
        return Answer(one.number, tuple(caches), hidden)

    def _keep(self, key_states: torch.Tensor, value_states: torch.Tensor, **named: Any) -> Any:
        self._keys, self._values = key_states, value_states
        return self._update(key_states=key_states, value_states=value_states, **named)
