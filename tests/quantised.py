"""Small models whose weights are quantised, as compressed-tensors writes them."""

import json
from dataclasses import dataclass
from pathlib import Path
from platform import machine
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from sllm.node.worker.model.quantisation import INT8, Quantisation
from sllm.node.worker.trial.quantising import quantise

_ACTIVATIONS = {
    "num_bits": 8,
    "type": "int",
    "symmetric": True,
    "strategy": "token",
    "dynamic": True,
    "group_size": None,
    "actorder": None,
}


@dataclass(frozen=True, slots=True)
class Kind:
    """One way to quantise, and a dtype to run in."""

    name: str
    quantisation: Quantisation
    dtype: torch.dtype


KINDS = (
    Kind("int8-float32", INT8, torch.float32),
    Kind("int8-bfloat16", INT8, torch.bfloat16),
    Kind("int4-groups", Quantisation(4, 32), torch.bfloat16),
    Kind("int4-channels", Quantisation(4), torch.bfloat16),
)


needs_int4 = pytest.mark.skipif(
    machine() == "x86_64" and "avx512f" not in Path("/proc/cpuinfo").read_text(),
    reason="vLLM's build for this processor has no kernel for int4",
)
needs_int8 = pytest.mark.skipif(
    machine() == "x86_64" and "_vnni" not in Path("/proc/cpuinfo").read_text(),
    reason="this processor cannot add up products of int8 numbers exactly",
)
RUNNABLE = [
    pytest.param(kind, marks=needs_int4 if kind.quantisation.bits == 4 else needs_int8)
    for kind in KINDS
]
"""Those that vLLM runs here."""


def settings(kind: Kind) -> dict[str, Any]:
    """What such a checkpoint's config.json says, as llm-compressor writes it."""
    size, bits = kind.quantisation.group_size, kind.quantisation.bits
    weights = {
        "num_bits": bits,
        "type": "int",
        "symmetric": True,
        "strategy": "group" if size else "channel",
        "group_size": size,
        "dynamic": False,
        "actorder": None,
        "block_structure": None,
        "observer": "minmax",
        "observer_kwargs": {},
    }
    group = {
        "weights": weights,
        "input_activations": _ACTIVATIONS if bits == 8 else None,
        "output_activations": None,
        "targets": ["Linear"],
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized" if bits == 8 else "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "sparsity_config": {},
        "transform_config": {},
        "global_compression_ratio": None,
        "version": "0.17.0",
    }


def quantised(directory: Path, kind: Kind) -> Any:
    """Quantises a plain model where it lies, and gives what computes what that stands for."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=kind.dtype).eval()
    quantise(model, kind.quantisation)
    model.save_pretrained(directory)
    path = directory / "config.json"
    config = json.loads(path.read_text()) | {"quantization_config": settings(kind)}
    path.write_text(json.dumps(config, indent=1))
    return model
