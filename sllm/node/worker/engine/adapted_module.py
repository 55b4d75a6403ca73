"""The layers of transformers' models that adapters may add to."""

from typing import Any

from transformers.pytorch_utils import Conv1D

from sllm.node.worker.engine.adapters import AdaptedModule, Part, linear_modules

_EXPERTS = ".experts."
"""Layers that see some of a step's rows alone."""


def adapted_modules(model: Any) -> list[AdaptedModule]:
    """Linear layers that see each row of a step: each is a module of its own."""
    return [
        AdaptedModule(module, (Part(name, inputs, 0, outputs),))
        for name, module in linear_modules(model, lambda one: _sizes(one) is not None)
        if _EXPERTS not in name and (sizes := _sizes(module))
        for inputs, outputs in [sizes]
    ]


def layer_sizes(model: Any) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of each of them, by its name."""
    parts = (part for one in adapted_modules(model) for part in one.parts)
    return {part.name: (part.inputs, part.end - part.begin) for part in parts}


def _sizes(module: Any) -> tuple[int, int] | None:
    """Inputs and outputs of a linear layer, plain, packed or of GPT-2's kind. None: it is none."""
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    found = getattr(module, "in_features", None), getattr(module, "out_features", None)
    inputs, outputs = found
    if type(inputs) is int and type(outputs) is int and not hasattr(module, "in1_features"):
        return inputs, outputs
    return None
