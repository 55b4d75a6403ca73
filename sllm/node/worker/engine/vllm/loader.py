"""Weights for vLLM's modules, out of tensors that are in memory: nothing goes through a file."""

from collections.abc import Mapping
from typing import Any

import torch
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.base_loader import BaseModelLoader

from sllm.errors import UnsupportedModel

LOAD_FORMAT = "sllm"
_NAMES_SHOWN = 3


def load_from(weights: Mapping[str, torch.Tensor]) -> None:
    """Has the models that vLLM makes from now on in `LOAD_FORMAT` take these weights.

    vLLM copies them into parameters of its own, where those that are used together lie together,
    and then into the form that its kernels want.

    Args:
        weights: by their names in the checkpoint.
    """

    class Loader(BaseModelLoader):  # type: ignore[misc]  # untyped library
        """Of these weights."""

        def download_model(self, model_config: Any) -> None:
            """Nothing is missing."""

        def load_weights(self, model: Any, model_config: Any) -> None:
            """Fills a module that has been made.

            Raises:
                UnsupportedModel: The weights are not those of the model.
            """
            _fill(model, weights)

    register_model_loader(LOAD_FORMAT)(Loader)


def _fill(model: Any, weights: Mapping[str, torch.Tensor]) -> None:
    try:
        loaded = model.load_weights(iter(weights.items()))
    except Exception as error:  # vLLM's models find fault with weights in many ways
        raise UnsupportedModel(
            f"vLLM cannot load the checkpoint's weights, which may not belong to its config.json: "
            f"{error!r}"
        ) from error
    missing = set() if loaded is None else {name for name, _ in model.named_parameters()} - loaded
    if missing:
        shown = ", ".join(sorted(missing)[:_NAMES_SHOWN])
        more = f" and {len(missing) - _NAMES_SHOWN} more" if len(missing) > _NAMES_SHOWN else ""
        raise UnsupportedModel(
            f"the checkpoint lacks what vLLM's {type(model).__name__} makes {shown}{more} of; "
            "it does not belong to its config.json"
        )
