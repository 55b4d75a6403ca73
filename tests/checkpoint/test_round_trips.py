"""Random state dicts of all dtypes, shapes, strides and ties come back bit by bit.

Small chunks and partitions put tensors across and at their borders; safetensors is the witness.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from sllm import checkpoint
from sllm.checkpoint.format.manifest_file import read_manifest
from sllm.checkpoint.importing.import_plan import plan_import
from sllm.checkpoint.reading.tensors import TORCH_NAMES
from sllm.checkpoint.saving.saving import write_tensors
from sllm.checkpoint.sources.sources import LocalSource, find_files
from tests.checkpoint.plans import CHUNK, run_import

DTYPES = sorted(TORCH_NAMES, key=str)
PAIRS = torch.float4_e2m1fn_x2
CARRIERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
PARTITION_BYTES = 3 * CHUNK + 64

borders = st.sampled_from(
    [near + off for near in (CHUNK, 2 * CHUNK, PARTITION_BYTES) for off in (-64, -1, 0, 1, 64)]
)
shapes = st.one_of(st.lists(st.integers(0, 9), max_size=4), st.tuples(borders).map(list))


def random_tensor(dtype: torch.dtype, shape: list[int], seed: int) -> torch.Tensor:
    """Random bits: NaNs with payloads, infinities and denormals among them."""
    if dtype is PAIRS and not shape:
        shape = [1]
    elements = torch.Size(shape).numel()
    random = torch.Generator().manual_seed(seed)
    bits = torch.randint(0, 256, (elements * dtype.itemsize,), dtype=torch.uint8, generator=random)
    if dtype is torch.bool:
        bits &= 1
    return bits.view(dtype).reshape(shape)


@st.composite
def strided(draw: st.DrawFn) -> torch.Tensor:
    """A view that may have gaps, swapped or repeated dimensions, or begin within its storage."""
    dtype, shape = draw(st.sampled_from(DTYPES)), draw(shapes)
    tensor = random_tensor(dtype, shape, draw(st.integers(0, 1000)))
    if not tensor.dim():
        return tensor
    view = draw(st.sampled_from(["as it is", "swapped", "every other", "late", "repeated"]))
    if view == "swapped":
        return tensor.transpose(0, -1)
    if view == "every other":
        return tensor[::2]
    if view == "late":
        return tensor[1:]
    return tensor.unsqueeze(0).expand(2, *tensor.shape) if view == "repeated" else tensor


@st.composite
def state_dicts(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    """Tensors by name, some of them tied to others, in the same shape or flat."""
    tensors = draw(st.lists(strided(), min_size=1, max_size=5))
    weights = {f"layers.{index}.w": tensor for index, tensor in enumerate(tensors)}
    for name in draw(st.sets(st.sampled_from(sorted(weights)))):
        tied = weights[name]
        flat = tied.is_contiguous() and draw(st.booleans())
        weights[f"tied.to.{name}"] = tied.view(-1) if flat else tied
    return weights


def assert_equal(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Compares names, dtypes, shapes and the bits of every element."""
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        carrier = CARRIERS[tensor.itemsize]
        assert torch.equal(found[name].view(carrier), tensor.view(carrier)), name


def opened(path: Path) -> dict[str, torch.Tensor]:
    with checkpoint.open(path) as weights:
        return dict(weights)


@given(state_dicts())
def test_what_is_saved_is_loaded(weights: dict[str, torch.Tensor]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "packed"
        manifest = write_tensors(weights, path, CHUNK, PARTITION_BYTES)
        assert read_manifest(path) == manifest
        loaded = checkpoint.load(path)
        assert_equal(loaded, weights)
        assert_equal(opened(path), weights)
        checkpoint.verify(path)
    for name in weights:
        owner = name.removeprefix("tied.to.")
        if weights[owner].numel():
            assert loaded[name].data_ptr() == loaded[owner].data_ptr()


@given(state_dicts())
def test_what_safetensors_wrote_is_packed_and_loaded(weights: dict[str, torch.Tensor]) -> None:
    untied = {name: contiguous(tensor) for name, tensor in weights.items()}
    with tempfile.TemporaryDirectory() as directory:
        source, packed = Path(directory) / "source", Path(directory) / "packed"
        source.mkdir()
        save_file(untied, source / "model.safetensors")
        plan = plan_import(find_files(LocalSource(source)), None, PARTITION_BYTES)
        run_import(plan, packed)
        witness = load_file(source / "model.safetensors")
        for path in (source, packed):
            assert_equal(checkpoint.load(path), witness)
            assert_equal(opened(path), witness)
            checkpoint.verify(path)
    assert_equal(witness, weights)


def contiguous(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of its own; torch lacks one for some of the small dtypes."""
    carried = tensor.view(CARRIERS[tensor.itemsize])
    return carried.clone(memory_format=torch.contiguous_format).view(tensor.dtype)
