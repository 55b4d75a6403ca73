"""Random weights that behave like trained ones: activations keep their size, logits differ."""

import json
import math
import re
import zlib
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, PreTrainedConfig

LOGIT_SPREAD = 4.0
BIAS_DEVIATION = 0.02

Parameters = list[tuple[str, torch.nn.Parameter]]


def write_weights(
    config: PreTrainedConfig, directory: Path, *, tokens: int, shards: int, seed: int
) -> None:
    """Write the weights of a model of this configuration, drawn from a seed.

    The files are drawn one at a time, so that no more than one is in memory.

    Args:
        config: The configuration, with the type of the weights.
        directory: Where the files go.
        tokens: The model prefers the first so many of its vocabulary.
        shards: The most files to spread the weights over, in even parts.
        seed: Decides the weights, whatever the number of files.
    """
    parts = _split(_meta_parameters(config), shards)
    files = _file_names(len(parts))
    for file, part in zip(files, parts, strict=True):
        with ThreadPoolExecutor() as pool:
            tensors = pool.map(lambda named: _draw(config, tokens, seed, *named), part)
            weights = dict(zip(_names(part), tensors, strict=True))
        save_file(weights, directory / file, metadata={"format": "pt"})
    if len(files) > 1:
        _write_index(directory, dict(zip(files, parts, strict=True)))


def _meta_parameters(config: PreTrainedConfig) -> Parameters:
    """Return the parameters of the model without their values; tied ones are there once."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return list(model.named_parameters())


def _split(parameters: Parameters, shards: int) -> list[Parameters]:
    """Cut a list of parameters, in its order, into parts of about as many bytes."""
    total = sum(parameter.nbytes for _, parameter in parameters)
    parts: dict[int, Parameters] = defaultdict(list)
    start = 0
    for named in parameters:
        parts[start * shards // total].append(named)
        start += named[1].nbytes
    return list(parts.values())


def _draw(
    config: PreTrainedConfig, tokens: int, seed: int, name: str, parameter: torch.nn.Parameter
) -> torch.Tensor:
    """Return random values for a parameter, which depend on its name and the seed only."""
    shape = parameter.shape
    if _is_norm(name, shape):
        return torch.full(shape, 1.0 if _in_layer(name) else LOGIT_SPREAD, dtype=config.dtype)
    limit = math.sqrt(3) * _deviation(config, name, shape)  # Of a uniform distribution.
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
    values = torch.empty(shape, dtype=config.dtype).uniform_(-limit, limit, generator=generator)
    if shape[0] == config.vocab_size:
        values[tokens:] = 0  # Logits of 0 are far from the highest.
    return values


def _deviation(config: PreTrainedConfig, name: str, shape: torch.Size) -> float:
    """Return the standard deviation of a matrix or a bias.

    Matrices in layers get more than what keeps activations at their size, or the next token
    would hardly depend on any but the last. Deep models need less of it, and bear less: every
    layer amplifies rounding errors.
    """
    if len(shape) == 1:
        return BIAS_DEVIATION
    gain = 1 + 3 / config.num_hidden_layers if _in_layer(name) else 1.0
    return gain / math.sqrt(shape[-1])


def _in_layer(name: str) -> bool:
    """Tell parameters of the numbered layers from embeddings, the last norm and the head."""
    return re.search(r"\.\d+\.", name) is not None


def _is_norm(name: str, shape: torch.Size) -> bool:
    return len(shape) == 1 and name.endswith("weight")


def _names(part: Parameters) -> list[str]:
    return [name for name, _ in part]


def _file_names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]


def _write_index(directory: Path, contents: dict[str, Parameters]) -> None:
    """Write which file holds which parameter."""
    sizes = [parameter.nbytes for part in contents.values() for _, parameter in part]
    index = {
        "metadata": {"total_size": sum(sizes)},
        "weight_map": {name: file for file, part in contents.items() for name in _names(part)},
    }
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
