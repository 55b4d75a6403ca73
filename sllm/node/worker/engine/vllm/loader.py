"""Weights for vLLM's modules, out of tensors that are in memory: nothing goes through a file."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.base_loader import BaseModelLoader

from sllm.errors import UnsupportedModel
from sllm.node.worker.engine.vllm.quantised import placeholders
from sllm.node.worker.engine.vllm.reading import ReadBytes
from sllm.node.worker.engine.vllm.ready_made import (
    Kernels,
    bind,
    embedding_only,
    make_ready,
    multiplying,
)
from sllm.node.worker.ready_made.contents import ReadyMade, Weights

LOAD_FORMAT = "sllm"
_NAMES_SHOWN = 3


class MadeReady(Exception):
    """Ends the making of an engine whose weights alone are wanted."""

    def __init__(self, ready: ReadyMade) -> None:
        super().__init__("the weights are ready")
        self.ready = ready


@dataclass(slots=True)
class Loading:
    """How filling a model with weights went."""

    read_bytes: int = 0
    """Of a checkpoint's weights: those that were copied. Ready-made ones stay where they are."""


@contextmanager
def loading(weights: Weights, *, making_ready: bool = False) -> Iterator[Loading]:
    """Has a model that vLLM makes in `LOAD_FORMAT` meanwhile take these weights.

    VLLM copies a checkpoint's into parameters of its own, where those that are used together lie
    together, and then into the form that its kernels want. Ready-made ones stay where they are.

    Args:
        weights: of the model.
        making_ready: whether the model goes no further than to `MadeReady`, which is raised.
    """
    loading = Loading()
    with ExitStack() as post_processing:

        def fill(model: Any, dtype: torch.dtype) -> None:
            kernels: Kernels = {}
            if isinstance(weights, ReadyMade):
                kernels = bind(model, weights)
            else:
                with ReadBytes(weights) as read:
                    _fill(model, weights)
                loading.read_bytes = read.bytes
            if making_ready:
                raise MadeReady(make_ready(model, dtype))
            post_processing.enter_context(multiplying(kernels, embedding_only(model)))

        register_model_loader(LOAD_FORMAT)(_loader(fill))
        yield loading


def _loader(fill: Callable[[Any, torch.dtype], None]) -> type[Any]:
    class Loader(BaseModelLoader):  # type: ignore[misc]  # untyped library
        """Of some weights."""

        def download_model(self, model_config: Any) -> None:
            """Nothing is missing."""

        def load_weights(self, model: Any, model_config: Any) -> None:
            """Fills a module that has been made.

            Raises:
                UnsupportedModel: The weights are not those of the model.
            """
            fill(model, model_config.dtype)

    return Loader


def _fill(model: Any, weights: Mapping[str, torch.Tensor]) -> None:
    try:
        loaded = model.load_weights(iter(weights.items()))
    except Exception as error:  # vLLM's models find fault with weights in many ways
        raise UnsupportedModel(
            f"vLLM cannot load the checkpoint's weights, which may not belong to its config.json: "
            f"{error!r}"
        ) from error
    needed = {name for name, _ in model.named_parameters()} - placeholders(model)
    missing = set() if loaded is None else needed - loaded
    if missing:
        shown = ", ".join(sorted(missing)[:_NAMES_SHOWN])
        more = f" and {len(missing) - _NAMES_SHOWN} more" if len(missing) > _NAMES_SHOWN else ""
        raise UnsupportedModel(
            f"the checkpoint lacks what vLLM's {type(model).__name__} makes {shown}{more} of; "
            "it does not belong to its config.json"
        )
