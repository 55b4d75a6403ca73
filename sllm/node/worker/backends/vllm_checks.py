"""What vLLM's kernels take of a model, where that depends on the device."""

import re
from pathlib import Path
from platform import machine

import torch
from vllm import _custom_ops  # noqa: F401  # loads the kernels that this processor's build has
from vllm.platforms import current_platform
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

from sllm.errors import UnsupportedModel
from sllm.node.worker.model.description import Architecture
from sllm.node.worker.model.quantisation import check_plain


def check_quantisation(architecture: Architecture) -> None:
    """Refuses quantised weights where they are not served.

    Raises:
        UnsupportedModel: Says why.
    """
    if not current_platform.is_cpu():
        instead = "which is served on processors alone; deploy a copy with plain weights here"
        check_plain(architecture.name, architecture.config, instead)
    if architecture.use.purpose.takes_images:
        instead = "and sees images, which is not served together; deploy a copy with plain weights"
        check_plain(architecture.name, architecture.config, instead)
    quantisation = architecture.quantisation
    if quantisation and quantisation.bits == 4 and not has_int4_kernel():
        raise _not_here(
            architecture,
            "quantised to 4 bits, and vLLM has no kernel for that as it is built for this node's "
            "processor (for AVX-512 it has)",
        )
    if quantisation and quantisation.quantises_activations and not adds_int8_exactly():
        raise _not_here(
            architecture,
            "quantised to 8 bits, activations too, whose products this node's processor cannot add "
            "up exactly (it has no VNNI instructions, without which sums of 16 bits overflow)",
        )


def _not_here(architecture: Architecture, why: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"{architecture.name} is {why}: deploy a copy with plain weights, or have a node with "
        "another processor",
        metadata={"architecture": architecture.name},
    )


def has_int4_kernel() -> bool:
    """Whether vLLM has one as it is built for this processor."""
    return hasattr(torch.ops._C, "cpu_gemm_wna16")


def adds_int8_exactly(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether oneDNN's products of int8 numbers are exact on this processor.

    Without VNNI an x86 processor adds pairs of them in 16 bits, and what does not fit is cut off:
    https://uxlfoundation.github.io/oneDNN/dev_guide_int8_computations.html
    """
    if machine() != "x86_64":
        return True
    return re.search(r"\b(avx512_vnni|avx_vnni|amx_int8)\b", cpuinfo.read_text()) is not None


def check_head_size(architecture: Architecture) -> None:
    """Refuses heads that no kernel for processors takes.

    Raises:
        UnsupportedModel: With the sizes.
    """
    text = architecture.config.get_text_config()
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    if current_platform.is_cpu() and not CPUAttentionBackend.supports_head_size(size):
        known = ", ".join(map(str, CPUAttentionBackend.get_supported_head_sizes()))
        raise UnsupportedModel(
            f"{architecture.name} has attention heads of {size} numbers; vLLM's kernels for "
            f"processors take {known}",
            metadata={"architecture": architecture.name},
        )
