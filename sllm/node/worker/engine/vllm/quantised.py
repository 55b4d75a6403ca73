"""Quantised layers of vLLM's on processors: which of them can use weights where they lie.

The kernel for int4 reads a plain tensor, in an order of its own that post-processing brings weights
into: what that has made is kept, and bound. The one for int8 has oneDNN pack weights into memory
that nobody else can reach, behind a handle: these layers are filled from what is published.
"""

from typing import Any, Final

from vllm.model_executor.kernels.linear.mixed_precision import cpu
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import (
    CompressedTensorsLinearMethod,
)
from vllm.model_executor.layers.quantization.kv_cache import BaseKVCacheMethod

_BLOCK: Final = 16
"""Outputs that lie together, as the kernel reads them."""
_PER_NUMBER: Final = 8
"""Weights in one number."""


def is_quantised(layer: Any) -> bool:
    """Whether a layer multiplies by quantised weights."""
    return type(getattr(layer, "quant_method", None)) is CompressedTensorsLinearMethod


def is_kept(layer: Any) -> bool:
    """Whether what post-processing makes of a quantised layer's weights are tensors of its own."""
    return type(getattr(layer.scheme, "kernel", None)) is cpu.CPUWNA16LinearKernel


def repack(layer: Any) -> None:
    """Brings weights that are kept into the order that their kernel reads."""
    layer.quant_method.process_weights_after_loading(layer)


def expect_repacked(layer: Any) -> None:
    """Has a layer that was not filled use weights that `repack` has made, once they are bound."""
    outputs, inputs = layer.output_size_per_partition, layer.input_size_per_partition
    packed, scale = layer.weight_packed, layer.weight_scale
    packed.data = packed.data.view(outputs // _BLOCK, inputs * _BLOCK // _PER_NUMBER)
    scale.data = scale.data.view(scale.shape[1], outputs)
    kernel = layer.scheme.kernel
    setattr(layer, kernel.w_zp_name, None)
    layer.use_w4a8, layer.isa_hint = False, cpu._get_isa_hint(scale.dtype)
    kernel.process_weights_after_loading = _leave


def _leave(layer: Any) -> None:
    """It has been processed."""


def placeholders(model: Any) -> frozenset[str]:
    """Names of parameters that are there for scales of a cache, which only some checkpoints have.

    None that is served has: its cache is in the dtype that the model is run in.
    """
    return frozenset(
        f"{prefix}.{name}"
        for prefix, layer in model.named_modules()
        if isinstance(getattr(layer, "quant_method", None), BaseKVCacheMethod)
        for name, _ in layer.named_parameters(recurse=False)
    )
