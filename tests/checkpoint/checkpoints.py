"""Safetensors directories and checkpoints for the tests of the tiers."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from sllm.checkpoint.format.manifest import Manifest
from sllm.checkpoint.importing.import_plan import plan_import
from sllm.checkpoint.reading.tensors import tensors_over
from sllm.checkpoint.sources.sources import LocalSource, inspect
from sllm.node.tiers.pool import Pool
from tests.checkpoint.plans import run_import


def write_model(
    directory: Path, tensors: Mapping[str, torch.Tensor] | None = None, seed: int = 0
) -> Path:
    """A model's directory as repositories hold it, of random weights unless they are given."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors or random_weights(seed)), directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps({"model_type": "tiny", "dtype": "float32"}))
    (directory / "tokenizer.json").write_text(json.dumps({"version": "1.0"}))
    return directory


def write_pooling(directory: Path) -> None:
    """Adds what sentence-transformers keeps of a model, in a directory of its own."""
    (directory / "modules.json").write_text("[]")
    (directory / "1_Pooling").mkdir()
    (directory / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    (directory / "1_Pooling" / "README.md").write_text("of no use")
    (directory / "2_Dense").mkdir()
    (directory / "2_Dense" / "config.json").write_text('{"of": "no use"}')


def assert_pooling(manifest: Manifest, directory: Path) -> None:
    """Makes sure that of it that came along which says how the model pools."""
    names = {file.name for file in manifest.files}
    assert names == {"config.json", "tokenizer.json", "modules.json", "1_Pooling.config.json"}
    assert (directory / "1_Pooling.config.json").read_text() == '{"pooling_mode_cls_token": true}'


def random_weights(seed: int = 0, layers: int = 3) -> dict[str, torch.Tensor]:
    """Some 50 KB: several chunks, none of them ending with a tensor."""
    random = torch.Generator().manual_seed(seed)
    weights = {"model.embed_tokens.weight": torch.randn(100, 16, generator=random)}
    for layer in range(layers):
        weights[f"model.layers.{layer}.w"] = torch.randn(60, 57, generator=random)
    weights["model.norm.weight"] = torch.randn(16, generator=random)
    return weights


def import_model(source: Path, destination: Path, dtype: str | None = None) -> Manifest:
    """Imports the model at `source`."""
    return run_import(plan_import(inspect(LocalSource(source)), dtype), destination)


def tensors_in_pool(
    manifest: Manifest, pool: Pool, chunks: tuple[tuple[int, ...], ...]
) -> dict[str, torch.Tensor]:
    """A copy of a checkpoint's tensors, put together from its chunks."""
    joined = [b"".join(bytes(pool.view(chunk)) for chunk in places) for places in chunks]
    return _tensors(manifest, joined)


def tensors_on_disk(manifest: Manifest, directory: Path) -> dict[str, torch.Tensor]:
    """A checkpoint's tensors, read from its partitions."""
    return _tensors(
        manifest, [(directory / entry.file).read_bytes() for entry in manifest.partitions]
    )


def _tensors(manifest: Manifest, partitions: list[bytes]) -> dict[str, torch.Tensor]:
    return tensors_over(
        manifest.tensors, [memoryview(bytearray(content)) for content in partitions]
    )


def assert_same(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Compares names, dtypes, shapes and bits."""
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert bits(found[name]) == bits(tensor), name


def bits(tensor: torch.Tensor) -> bytes:
    """A tensor's bytes: NaNs and tiny dtypes compare like everything else."""
    return bytes(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())


def flip_bit(path: Path, offset: int) -> None:
    """What a bad disk does."""
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)
