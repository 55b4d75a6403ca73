"""Whether a checkpoint's tensors are those of its model, known from headers alone."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from sllm.checkpoint.format.experts import expert_part
from sllm.checkpoint.format.safetensors_header import TensorHeader
from sllm.checkpoint.reading.tensors import torch_form
from sllm.errors import UnsupportedModel
from sllm.node.worker.model.description import Architecture
from sllm.node.worker.model.module import listed, load_module, refuse_any
from sllm.node.worker.model.refusing import refusing
from sllm.node.worker.trial.quantising import quantise


def check_fit(architecture: Architecture, headers: Mapping[str, TensorHeader]) -> str:
    """Refuses tensors that the model has in other shapes, and those it misses.

    Args:
        architecture: of the model.
        headers: of the checkpoint's tensors, by name.

    Returns:
        The tensors that the model has no use for; empty if there are none.

    Raises:
        UnsupportedModel: Names the tensors; or the model cannot be built from its configuration.
    """
    _check_depth(architecture.config, len(headers))
    with refusing("no model can be built from its config.json"), torch.device("meta"):
        module = architecture.made(architecture.config)
    if architecture.quantisation:
        with torch.device("meta"):
            quantise(module, architecture.quantisation)
        return _check_names(module, headers)
    if _are_those_of(module, headers):
        return ""
    return _load_without_memory(architecture, headers)


def _check_depth(config: Any, tensors: int) -> None:
    """Refuses more layers than could be filled, before each of them is built."""
    layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
    if type(layers) is int and layers > tensors:
        raise UnsupportedModel(
            f"config.json says that there are {layers} layers, and the checkpoint has {tensors} "
            "tensors; it does not belong to its config.json"
        )


def _are_those_of(module: Any, headers: Mapping[str, TensorHeader]) -> bool:
    """Whether names and shapes are the very ones that the module has: the rule, and cheap."""
    needed = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    tied = set(getattr(module, "all_tied_weights_keys", ()))
    found = {name: tuple(header.shape) for name, header in headers.items()}
    return found.items() <= needed.items() and needed.keys() - found.keys() <= tied


def _check_names(module: Any, headers: Mapping[str, TensorHeader]) -> str:
    """The same where no library knows of older names: what is quantised has no others."""
    needed = module.state_dict()
    tied = set(getattr(module, "all_tied_weights_keys", ()))
    refuse_any("lacks", needed.keys() - headers.keys() - tied)
    refuse_any(
        "has in another shape",
        (
            f"{name} ({list(header.shape)} instead of {list(needed[name].shape)})"
            for name, header in headers.items()
            if name in needed and tuple(header.shape) != tuple(needed[name].shape)
        ),
    )
    refuse_any(
        "has in another dtype",
        (
            name
            for name, header in headers.items()
            if name in needed and not _is_alike(torch_form(header)[0], needed[name].dtype)
        ),
    )
    return listed(headers.keys() - needed.keys())


def _is_alike(one: torch.dtype, other: torch.dtype) -> bool:
    """Whether they are the same, or both of numbers that engines bring into their own dtype."""
    return one is other or (one.is_floating_point and other.is_floating_point)


def _load_without_memory(architecture: Architecture, headers: Mapping[str, TensorHeader]) -> str:
    """Has transformers load tensors of which only shapes are there.

    It knows old names, and those of checkpoints in which parts are stored one by one, and says what
    is missing or too much in the end.
    """
    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # such tensors are known to one thread alone
    _check_experts(headers.values())
    with FakeTensorMode(allow_non_fake_inputs=True), _Equal():
        tensors = {name: _empty(header) for name, header in headers.items()}
        return load_module(architecture, tensors).unused


def _check_experts(headers: Iterable[TensorHeader]) -> None:
    """Names what an expert lacks: transformers says that it cannot fuse them, and not why."""
    if problem := _uneven_experts(headers):
        raise UnsupportedModel(f"the checkpoint {problem}; it does not belong to its config.json")


def _uneven_experts(headers: Iterable[TensorHeader]) -> str:
    """What the first expert lacks, or has in another shape, that others of its layer have."""
    layers: dict[str, dict[int, dict[str, TensorHeader]]] = {}
    for header in headers:
        if part := expert_part(header.name):
            experts = layers.setdefault(part.whole, {})
            experts.setdefault(part.expert, {})[part.projection] = header
    for experts in layers.values():
        usual = max(experts.values(), key=len)
        for expert in experts.values():
            if problem := _other_than(usual, expert):
                return problem
    return ""


def _other_than(usual: Mapping[str, TensorHeader], expert: Mapping[str, TensorHeader]) -> str:
    beside = next(iter(expert.values())).name
    for projection, of_others in usual.items():
        header = expert.get(projection)
        if header is None:
            return f"lacks the {projection} that belongs to {beside}"
        if header.shape != of_others.shape:
            shapes = f"({list(header.shape)} instead of {list(of_others.shape)})"
            return f"has in another shape than that of other experts {header.name} {shapes}"
    return ""


class _Equal(TorchFunctionMode):
    """Within it, tensors without values are equal if their shapes are.

    Transformers asks that of tied tensors which are both there.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Called for every function of torch."""
        if func is torch.equal:
            return args[0].shape == args[1].shape
        return func(*args, **(kwargs or {}))


def _empty(header: TensorHeader) -> torch.Tensor:
    dtype, shape = torch_form(header)
    return torch.empty(shape, dtype=dtype)
