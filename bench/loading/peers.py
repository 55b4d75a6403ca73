"""The peers: how each library loads a model's weights, by its own documentation."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from bench.loading.contender import Group, Load, Prepare, Tensors
from bench.loading.models import Model


def _plain(name: str, load: Callable[[Model], Tensors], in_page_cache: bool = False) -> Prepare:
    """A contender that prepares nothing."""

    @contextmanager
    def prepare(model: Model) -> Iterator[Mapping[str, Load]]:
        yield {name: Load(lambda: load(model), in_page_cache=in_page_cache)}

    return prepare


def _safetensors(model: Model) -> Tensors:
    from safetensors.torch import load_file

    return {name: t for path in model.safetensors for name, t in load_file(path).items()}


def _torch_load(model: Model) -> Tensors:
    return _as_tensors(torch.load(model.torch, weights_only=True))


def _torch_load_mmap(model: Model) -> Tensors:
    return _as_tensors(torch.load(model.torch, weights_only=True, mmap=True))


def _as_tensors(loaded: object) -> Tensors:
    assert isinstance(loaded, dict)
    return loaded


def _transformers(model: Model) -> Tensors:
    from transformers import AutoModelForCausalLM

    return dict(AutoModelForCausalLM.from_pretrained(model.source, dtype="auto").state_dict())


def _runai(model: Model) -> Tensors:
    from runai_model_streamer import SafetensorsStreamer

    with SafetensorsStreamer() as streamer:
        streamer.stream_files([str(path) for path in model.safetensors])
        return dict(streamer.get_tensors())


@contextmanager
def _fastsafetensors(model: Model) -> Iterator[Mapping[str, Load]]:
    from fastsafetensors import SafeTensorsFileLoader

    opened = []

    def load() -> Tensors:
        loader = SafeTensorsFileLoader(None, "cpu", nogds=True)
        loader.add_filenames({0: [str(path) for path in model.safetensors]})
        buffer = loader.copy_files_to_device()
        opened.extend([buffer, loader])
        return {key: buffer.get_tensor(key) for key in loader.get_keys()}

    yield {"fastsafetensors": Load(load)}
    for one in opened:
        one.close()


@contextmanager
def _tensorizer(model: Model) -> Iterator[Mapping[str, Load]]:
    from tensorizer import TensorDeserializer

    opened = []

    def load() -> Tensors:
        opened.append(TensorDeserializer(str(model.tensorizer), device="cpu"))
        return {key: opened[-1][key] for key in opened[-1]}

    yield {"tensorizer": Load(load)}
    for one in opened:
        one.close()


def _files(model: Model, name: str) -> list[Path]:
    return model.safetensors


def _torch_file(model: Model, name: str) -> list[Path]:
    return [model.torch]


def _tensorizer_file(model: Model, name: str) -> list[Path]:
    return [model.tensorizer]


IN_PAGE_CACHE = "safetensors, lazily"
"""Not a peer of loads into memory: what it leaves there may go at any moment."""

PEERS = (
    Group(("safetensors",), _plain("safetensors", _safetensors), _files),
    Group((IN_PAGE_CACHE,), _plain(IN_PAGE_CACHE, _safetensors, in_page_cache=True), _files),
    Group(("torch.load",), _plain("torch.load", _torch_load), _torch_file),
    Group(("torch.load, mmap",), _plain("torch.load, mmap", _torch_load_mmap), _torch_file),
    Group(
        ("Run:ai streamer",),
        _plain("Run:ai streamer", _runai),
        _files,
        library="runai_model_streamer",
    ),
    Group(("fastsafetensors",), _fastsafetensors, _files, library="fastsafetensors"),
    Group(("tensorizer",), _tensorizer, _tensorizer_file, library="tensorizer"),
    Group(
        ("from_pretrained",),
        _plain("from_pretrained", _transformers),
        _files,
        library="transformers",
        fits=lambda model: model.is_causal_lm,
    ),
)
