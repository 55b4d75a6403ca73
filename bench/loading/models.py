"""Models of random weights on disk, in the format of every contender."""

import asyncio
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from random_weights import write_weights
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import LlamaConfig

from sllm.clock import MonotonicClock
from sllm.node.store.tier_store import TierStore
from sllm.node.tiers.pool import Pool
from sllm.node.tiers.types import Tier

CHUNK_BYTES = 16 << 20
SSD_BYTES = 1 << 40
HIDDEN, INTERMEDIATE, VOCABULARY = 2048, 8192, 32_000
_LAYER_BYTES = 2 * (4 * HIDDEN**2 + 3 * HIDDEN * INTERMEDIATE)
_EMBEDDING_BYTES = 2 * 2 * VOCABULARY * HIDDEN
_PROJECTIONS = {  # of a 70B model with grouped queries: in, out
    "q_proj": (8192, 8192),
    "k_proj": (8192, 1024),
    "v_proj": (8192, 1024),
    "o_proj": (8192, 8192),
    "gate_proj": (8192, 28_672),
    "up_proj": (8192, 28_672),
    "down_proj": (28_672, 8192),
}
_LORA_LAYERS, _LORA_RANK = 80, 8


@dataclass(frozen=True, slots=True)
class Model:
    """One model in all formats."""

    name: str
    source: Path
    """Its directory in Hugging Face format."""
    store: Path
    """A node's SSD tier that holds it, packed."""
    plain_store: Path
    """A node's SSD tier that serves it from where it lies."""
    torch: Path
    """As torch.save writes it."""
    tensorizer: Path
    """As tensorizer writes it; not there if tensorizer is not."""

    @property
    def safetensors(self) -> list[Path]:
        """The source's weights."""
        return sorted(self.source.glob("*.safetensors"))

    @property
    def packed(self) -> Path:
        """The checkpoint in the SSD tier."""
        return next(path.parent for path in self.store.glob("*/manifest.json"))

    @property
    def partitions(self) -> list[Path]:
        """The packed weights."""
        return sorted(self.packed.glob("partition-*.bin"))

    @property
    def size_bytes(self) -> int:
        """Bytes of the source's weights."""
        return sum(path.stat().st_size for path in self.safetensors)

    @property
    def is_causal_lm(self) -> bool:
        """Whether transformers can make a model of it."""
        return (self.source / "generation_config.json").exists()


def make_llama(directory: Path, name: str, size: int, shards: int) -> Model:
    """A Llama of about `size` bytes in bfloat16, in that many safetensors files."""
    layers = max(1, round((size - _EMBEDDING_BYTES) / _LAYER_BYTES))
    narrow = size < _EMBEDDING_BYTES + _LAYER_BYTES  # to warm contenders up
    config = LlamaConfig(
        hidden_size=256 if narrow else HIDDEN,
        intermediate_size=512 if narrow else INTERMEDIATE,
        num_hidden_layers=layers,
        num_attention_heads=16,
        vocab_size=1024 if narrow else VOCABULARY,
        dtype="bfloat16",
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
    )
    source = directory / name / "source"
    source.mkdir(parents=True)
    write_weights(config, source, tokens=1000, shards=shards, seed=0)
    config.save_pretrained(source)
    (source / "generation_config.json").write_text("{}")
    return _in_all_formats(directory / name, name)


def make_lora(directory: Path, name: str) -> Model:
    """An adapter of over a thousand small tensors, 0.2 GB."""
    source = directory / name / "source"
    source.mkdir(parents=True)
    random = torch.Generator().manual_seed(0)
    weights = {
        f"base_model.model.model.layers.{layer}.{projection}.lora_{side}.weight": torch.randn(
            shape, generator=random
        ).bfloat16()
        for layer in range(_LORA_LAYERS)
        for projection, (inner, outer) in _PROJECTIONS.items()
        for side, shape in (("A", (_LORA_RANK, inner)), ("B", (outer, _LORA_RANK)))
    }
    save_file(weights, source / "adapter_model.safetensors")
    (source / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return _in_all_formats(directory / name, name)


def _in_all_formats(directory: Path, name: str) -> Model:
    model = Model(
        name,
        directory / "source",
        directory / "store",
        directory / "plain-store",
        directory / "model.pt",
        directory / "model.tensors",
    )
    asyncio.run(_pack(model))
    weights = read_weights(model)
    torch.save(weights, model.torch)
    _write_tensorizer(weights, model.tensorizer)
    return model


def read_weights(model: Model) -> dict[str, torch.Tensor]:
    """The weights as safetensors reads them."""
    weights: dict[str, torch.Tensor] = {}
    for path in model.safetensors:
        with safe_open(path, framework="pt") as file:
            weights |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no dict
    return weights


async def _pack(model: Model) -> None:
    """As a node does that was asked to, before anybody asks for the model."""
    pool = Pool(CHUNK_BYTES, CHUNK_BYTES)
    store = await TierStore.open(model.store, SSD_BYTES, pool, clock=MonotonicClock())
    try:
        (await store.promote(str(model.source), None, Tier.SSD, pack=True)).release()
    finally:
        await store.close()
        pool.close()


def _write_tensorizer(weights: Mapping[str, torch.Tensor], path: Path) -> None:
    try:
        from tensorizer import TensorSerializer
    except ImportError:
        return
    serializer = TensorSerializer(os.fspath(path))
    serializer.write_state_dict(weights)
    serializer.close()
