"""vLLM's module over ready-made weights, on processors: nothing is copied, and nothing packed anew.

What is kept is a module's parameters as vLLM has put them together out of a checkpoint's, before
its post-processing, but for the weights of linear layers: of these, the blocks that post-processing
would have oneDNN make of them. So post-processing runs as it is, whatever else it does.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import torch
from vllm.model_executor.kernels.linear.scaled_mm import cpu as scaled_mm
from vllm.model_executor.layers import utils as layers
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import (
    UnquantizedFusedMoEMethod,
)
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.model_executor.layers.quantization.kv_cache import BaseKVCacheMethod
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    UnquantizedEmbeddingMethod,
)

from sllm.errors import UnsupportedModel
from sllm.node.worker.engine.vllm.quantised import (
    expect_repacked,
    is_kept,
    is_quantised,
    placeholders,
    repack,
)
from sllm.node.worker.ready_made.contents import ReadyMade
from sllm.node.worker.ready_made.packed_weight import PackedWeight, is_packable, linear, pack

Kernels = Mapping[torch.nn.Module, torch.Tensor]
"""Opaque weights, by the layers that multiply by them."""

_WEIGHT: Final = "weight"
_KEPT: Final = (UnquantizedLinearMethod, UnquantizedEmbeddingMethod, UnquantizedFusedMoEMethod)
"""How layers have weights that are kept. Post-processing copies those of experts, as ever."""


def make_ready(model: Any, dtype: torch.dtype) -> ReadyMade:
    """What to keep of a module that vLLM has filled with a checkpoint's weights.

    It takes the module apart as it goes, so that no weight is there twice.

    Args:
        model: the module.
        dtype: in which it is run.

    Raises:
        UnsupportedModel: A layer has weights of a kind that is not kept: quantised ones.
    """
    packed = {}
    for name, layer in model.named_modules():
        _check(name, layer)
        if is_quantised(layer):
            repack(layer)
        if _multiplies(model, layer) and is_packable(layer.weight):
            packed[name] = pack(layer.weight)
            if not _embeds(model, layer):
                layer.weight.data = torch.empty(0, dtype=layer.weight.dtype)
    plain = {name: one.data for name, one in _kept_parameters(model) if one.numel()}
    return ReadyMade({**plain, **dict(_kept_buffers(model))}, packed, dtype)


def bind(model: Any, ready: ReadyMade) -> Kernels:
    """Has a module that vLLM has made use ready-made weights where they lie.

    Returns:
        What layers are to multiply by; see `multiplying`.

    Raises:
        UnsupportedModel: They are not those of the module.
    """
    for layer in model.modules():
        if is_quantised(layer) and is_kept(layer):
            expect_repacked(layer)
    parameters = dict(_kept_parameters(model))
    buffers = dict(_kept_buffers(model))
    modules = dict(model.named_modules())
    lacking = parameters.keys() - ready.plain.keys() - {f"{name}.weight" for name in ready.packed}
    unknown = ready.plain.keys() - parameters.keys() - buffers.keys()
    if lacking or unknown or ready.packed.keys() - modules.keys():
        raise UnsupportedModel(
            f"ready-made weights do not fit vLLM's {type(model).__name__}: "
            f"{min(lacking | unknown, default='a layer')} is only in one of them"
        )
    own = {**parameters, **buffers}
    _check_fit(model, ((name, own[name], one) for name, one in ready.plain.items()))
    _check_fit(model, ((name, modules[name].weight, one) for name, one in ready.packed.items()))
    for name, tensor in ready.plain.items():
        if name in parameters:
            parameters[name].data = tensor
        else:
            buffers[name].copy_(tensor)
    return {modules[name]: weight.bind() for name, weight in ready.packed.items()}


def _check_fit(model: Any, pairs: Iterable[tuple[str, Any, torch.Tensor | PackedWeight]]) -> None:
    """Kernels read as much as the module's own weights have, and so beyond what is smaller."""
    for name, own, given in pairs:
        if (tuple(own.shape), own.dtype) != (tuple(given.shape), given.dtype):
            raise UnsupportedModel(
                f"ready-made weights do not fit vLLM's {type(model).__name__}: {name} is "
                f"{tuple(given.shape)} in {given.dtype}, not {tuple(own.shape)} in {own.dtype}"
            )


@contextmanager
def multiplying(kernels: Kernels, embedding_only: frozenset[torch.nn.Module]) -> Iterator[None]:
    """For as long as vLLM post-processes, its layers get these weights, and the others oneDNN's.

    For small weights vLLM would take kernels of SGLang's on processors with AMX: these round by how
    many rows they are given, so that others in a step would change what comes out.

    Args:
        kernels: opaque weights.
        embedding_only: layers that look rows up, and multiply by nothing. vLLM would pack these.
    """
    by_vllm, by_sglang = layers.dispatch_cpu_unquantized_gemm, layers.check_cpu_sgl_kernel
    int8_by_sglang = scaled_mm.check_cpu_sgl_kernel

    def dispatch(layer: Any, remove_weight: bool) -> None:
        if layer in kernels:
            layer.cpu_linear = partial(_multiply, kernels[layer])
            if remove_weight:
                layer.weight = torch.nn.Parameter(
                    torch.empty(0, dtype=layer.weight.dtype), requires_grad=False
                )
        elif layer in embedding_only:
            layer.cpu_linear = torch.nn.functional.linear
        else:
            by_vllm(layer, remove_weight)

    layers.dispatch_cpu_unquantized_gemm = dispatch
    layers.check_cpu_sgl_kernel = scaled_mm.check_cpu_sgl_kernel = lambda *_: False
    try:
        yield
    finally:
        layers.dispatch_cpu_unquantized_gemm = by_vllm
        layers.check_cpu_sgl_kernel = by_sglang
        scaled_mm.check_cpu_sgl_kernel = int8_by_sglang


def embedding_only(model: Any) -> frozenset[torch.nn.Module]:
    """Layers that look rows up and multiply by nothing."""
    return frozenset(
        layer
        for layer in model.modules()
        if type(getattr(layer, "quant_method", None)) is UnquantizedEmbeddingMethod
        and not _multiplies(model, layer)
    )


def _multiply(
    kernel: torch.Tensor, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    return linear(rows, kernel, bias)


def _check(name: str, layer: Any) -> None:
    method = getattr(layer, "quant_method", None)
    if is_quantised(layer) and not is_kept(layer):
        raise UnsupportedModel(
            f"{name} has quantised weights that vLLM's kernel packs into memory of its own, where "
            "no others can be bound: starts take what is published"
        )
    known = is_quantised(layer) or type(method) in _KEPT or isinstance(method, BaseKVCacheMethod)
    if isinstance(method, QuantizeMethodBase) and not known:
        raise UnsupportedModel(
            f"{name} has weights of {type(method).__name__}, which are not kept ready-made"
        )


def _multiplies(model: Any, layer: Any) -> bool:
    method = type(getattr(layer, "quant_method", None))
    if method is UnquantizedLinearMethod:
        # What vLLM reads by itself, beside multiplying by it.
        return not getattr(layer, "_cpu_skip_gemm_dispatch", False)
    if method is UnquantizedEmbeddingMethod:
        return isinstance(layer, ParallelLMHead) or not _has_head(model)
    return False


def _embeds(model: Any, head: Any) -> bool:
    """Whether rows of a head's weight are looked up as well."""
    return any(
        getattr(layer, _WEIGHT, None) is head.weight
        for layer in model.modules()
        if type(getattr(layer, "quant_method", None)) is UnquantizedEmbeddingMethod
        and not isinstance(layer, ParallelLMHead)
    )


def _has_head(model: Any) -> bool:
    """Whether there is a layer for it. Otherwise the embedding multiplies as well."""
    return any(isinstance(layer, ParallelLMHead) for layer in model.modules())


def _kept_parameters(model: Any) -> Iterator[tuple[str, Any]]:
    """Parameters that a checkpoint has."""
    left_out = placeholders(model)
    return (one for one in model.named_parameters() if one[0] not in left_out)


def _kept_buffers(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Buffers that a checkpoint may have; all others are computed as the module is made."""
    for prefix, layer in model.named_modules():
        for name, buffer in layer.named_buffers(recurse=False):
            if name not in layer._non_persistent_buffers_set:
                yield f"{prefix}.{name}" if prefix else name, buffer
