"""The peers: how each library brings a model's weights to the device, by its documentation."""

import gc
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from bench.disk import drop_from_page_cache

Load = Callable[[Path], object]


def _safetensors(model: Path) -> object:
    return [load_file(path, device="cuda") for path in sorted(model.glob("*.safetensors"))]


def _from_pretrained(model: Path) -> object:
    return AutoModelForCausalLM.from_pretrained(model, dtype="auto", device_map="cuda")


def _torch_load(model: Path) -> object:
    return torch.load(model / "weights.pt", map_location="cuda", weights_only=True)


PEERS: dict[str, Load] = {
    "safetensors load_file": _safetensors,
    "transformers from_pretrained": _from_pretrained,
    "torch.load": _torch_load,
}


def write_torch_file(model: Path) -> None:
    """The same weights as torch saves them."""
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(model.glob("*.safetensors")):
        tensors |= load_file(path)
    torch.save(tensors, model / "weights.pt")


def seconds(load: Load, model: Path, *, cold: bool) -> float:
    """Seconds of one load, its files being in the page cache or not; nothing is kept."""
    if cold:
        drop_from_page_cache([*model.glob("*.safetensors"), *model.glob("*.pt")])
    began = time.perf_counter()
    loaded = load(model)
    torch.cuda.synchronize()
    took = time.perf_counter() - began
    del loaded
    gc.collect()
    torch.cuda.empty_cache()
    return took
