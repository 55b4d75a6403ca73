"""Modules over weights that are elsewhere: bound to them, not copied."""

import ctypes
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sllm.checkpoint.format.manifest import TensorEntry
from sllm.errors import DeviceFailed, InvalidArgument, UnsupportedModel
from sllm.node.device.driver import LIBRARY_VARIABLE, load_driver
from sllm.node.instances import worker_messages
from sllm.node.worker import wire
from sllm.node.worker.messages import ModelDescription
from sllm.node.worker.model.description import load_architecture
from sllm.node.worker.model.device_weights import DeviceWeights, device_tensors, open_weights
from sllm.node.worker.model.module import build_module, build_module_on_device
from sllm.node.worker.preparing import Prepared
from tests.node.device import library
from tests.node.worker.conftest import FAMILIES

PROMPT = torch.arange(3, 23).unsqueeze(0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_module_is_bound_to_the_weights_and_computes_the_same(models: Path, family: str) -> None:
    weights = load_file(models / family / "model.safetensors")
    architecture = load_architecture(models / family)
    places = {weight.data_ptr() for weight in weights.values()}
    module = build_module_on_device(architecture, weights)
    assert {parameter.data_ptr() for parameter in module.parameters()} <= places
    assert not module.training
    plain = build_module(architecture, weights)
    with torch.no_grad():
        assert torch.equal(module(PROMPT).logits, plain(PROMPT).logits)


def test_tied_weights_stay_tied(models: Path) -> None:
    weights = load_file(models / "tiny-gpt2" / "model.safetensors")
    module = build_module_on_device(load_architecture(models / "tiny-gpt2"), weights)
    assert module.lm_head.weight is module.transformer.wte.weight


def test_weights_of_another_dtype_are_converted_as_transformers_would(models: Path) -> None:
    weights = load_file(models / "tiny-llama" / "model.safetensors")
    narrow = {name: weight.to(torch.bfloat16) for name, weight in weights.items()}
    norms = {name: one for name, one in weights.items() if "norm" in name}
    assert norms
    architecture = load_architecture(models / "tiny-llama")
    module = build_module_on_device(architecture, {**narrow, **norms})
    plain = build_module(architecture, {**narrow, **norms})
    with torch.no_grad():
        assert torch.equal(module(PROMPT).logits, plain(PROMPT).logits)


def test_weights_that_are_not_the_models_are_refused(models: Path) -> None:
    weights = load_file(models / "tiny-llama" / "model.safetensors")
    del weights["model.norm.weight"]
    with pytest.raises(UnsupportedModel, match=r"lacks model\.norm\.weight"):
        build_module_on_device(load_architecture(models / "tiny-llama"), weights)


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return library.build(tmp_path_factory.mktemp("double"))


def allocation(content: bytes) -> bytes:
    """Has the double hold some bytes; gives the handle."""
    driver = load_driver()
    driver.enter(0)
    address = driver.allocate(len(content))
    ctypes.memmove(address, content, len(content))
    return driver.export(address)


def test_tensors_are_views_of_the_allocation(monkeypatch: pytest.MonkeyPatch, double: Path) -> None:
    monkeypatch.setenv(LIBRARY_VARIABLE, str(double))
    whole = torch.arange(64, dtype=torch.float32)
    entries = (
        TensorEntry("a", "F32", (4, 4), 0, 0, 64),
        TensorEntry("tied", "F32", (4, 4), 0, 0, 64),
        TensorEntry("b", "F32", (2, 8), 1, 8, 64),
        TensorEntry("none", "F32", (0, 3), 1, 8, 0),
    )
    handle = allocation(whole.numpy().tobytes())
    weights = DeviceWeights(handle, 256, (0, 120), entries)
    opened = open_weights(weights)
    tensors = device_tensors(opened, weights)
    assert torch.equal(tensors["a"], whole[:16].view(4, 4))
    assert torch.equal(tensors["b"], whole[32:48].view(2, 8))
    assert tensors["none"].shape == (0, 3)
    assert tensors["a"].data_ptr() == tensors["tied"].data_ptr() == opened.address


def test_what_is_outside_of_the_allocation_is_refused(
    monkeypatch: pytest.MonkeyPatch, double: Path
) -> None:
    monkeypatch.setenv(LIBRARY_VARIABLE, str(double))
    handle = allocation(bytes(256))
    for entry in (
        TensorEntry("long", "F32", (100,), 0, 0, 400),
        TensorEntry("elsewhere", "F32", (4,), 3, 0, 16),
    ):
        weights = DeviceWeights(handle, 256, (0,), (entry,))
        with pytest.raises(InvalidArgument, match=f"tensor '{entry.name}' is not within"):
            device_tensors(open_weights(weights), weights)


def test_handles_that_are_none_are_refused(monkeypatch: pytest.MonkeyPatch, double: Path) -> None:
    monkeypatch.setenv(LIBRARY_VARIABLE, str(double))
    with pytest.raises(InvalidArgument, match="64 bytes, and this one 3"):
        open_weights(DeviceWeights(b"abc", 1, (0,), ()))
    with pytest.raises(DeviceFailed, match="cuIpcOpenMemHandle_v2"):
        open_weights(DeviceWeights(bytes(64), 1, (0,), ()))


def test_what_the_first_use_of_a_device_took_is_told_to_the_agent() -> None:
    model = ModelDescription("Llama", 512, 64, "bfloat16")
    for warm_up in (0.5, None):
        told = worker_messages.prepared(wire.prepare_response(Prepared(2.0, model, warm_up), ()))
        assert told == worker_messages.Prepared(model, 2.0, warm_up)
