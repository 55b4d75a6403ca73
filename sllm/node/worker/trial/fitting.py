"""Whether a checkpoint's tensors are those of its model, known from headers alone."""

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from sllm.checkpoint.format.safetensors_header import TensorHeader
from sllm.checkpoint.reading.tensors import torch_form
from sllm.node.worker.model.description import Architecture
from sllm.node.worker.model.module import build_module
from sllm.node.worker.model.refusing import refusing


def check_fit(architecture: Architecture, headers: Mapping[str, TensorHeader]) -> None:
    """Refuses tensors that the model does not have, or has in other shapes, and those it misses.

    Args:
        architecture: of the model.
        headers: of the checkpoint's tensors, by name.

    Raises:
        UnsupportedModel: Names the tensors; or the model cannot be built from its configuration.
    """
    with refusing("no model can be built from its config.json"), torch.device("meta"):
        module = architecture.model_class(architecture.config)
    if not _are_those_of(module, headers):
        _load_without_memory(architecture, headers)


def _are_those_of(module: Any, headers: Mapping[str, TensorHeader]) -> bool:
    """Whether names and shapes are the very ones that the module has: the rule, and cheap."""
    needed = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    tied = set(getattr(module, "all_tied_weights_keys", ()))
    found = {name: tuple(header.shape) for name, header in headers.items()}
    return found.items() <= needed.items() and needed.keys() - found.keys() <= tied


def _load_without_memory(architecture: Architecture, headers: Mapping[str, TensorHeader]) -> None:
    """Has transformers load tensors of which only shapes are there.

    It knows old names, and those of checkpoints in which parts are stored one by one, and says what
    is missing or too much in the end.
    """
    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # such tensors are known to one thread alone
    with FakeTensorMode(allow_non_fake_inputs=True):
        build_module(architecture, {name: _empty(header) for name, header in headers.items()})


def _empty(header: TensorHeader) -> torch.Tensor:
    dtype, shape = torch_form(header)
    return torch.empty(shape, dtype=dtype)
