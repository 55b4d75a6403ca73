"""Bad input gets a typed error that says what to do, and changes nothing."""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from sllm import errors
from tests.e2e.cluster import Cluster


@pytest.fixture(scope="module")
def deployed(cluster: Cluster, models: Path, engine: str) -> Iterator[str]:
    source = f"file://{models / 'tiny-llama'}"
    cluster.client.deploy("good", source, engine=engine, keep_alive=30.0)
    yield "good"
    cluster.client.delete("good")
    cluster.wait_for_instances(0)


GENERATE: dict[str, tuple[dict[str, Any], type[errors.SllmError]]] = {
    "an empty prompt": ({"prompt": ""}, errors.InvalidPrompt),
    "no tokens": ({"prompt_token_ids": []}, errors.InvalidPrompt),
    "a token outside the vocabulary": ({"prompt_token_ids": [10**6]}, errors.InvalidPrompt),
    "a negative token": ({"prompt_token_ids": [-1]}, errors.InvalidPrompt),
    "no messages": ({"messages": []}, errors.InvalidPrompt),
    "two prompts": ({"prompt": "a", "prompt_token_ids": [1]}, errors.InvalidPrompt),
    "no prompt": ({}, errors.InvalidPrompt),
    "a prompt longer than the context": (
        {"prompt_token_ids": [5] * 5000},
        errors.ContextExceeded,
    ),
    "more tokens than the context": ({"prompt": "a", "max_tokens": 10**6}, errors.ContextExceeded),
    "no tokens to make": ({"prompt": "a", "max_tokens": 0}, errors.InvalidArgument),
    "a negative temperature": ({"prompt": "a", "temperature": -1.0}, errors.InvalidSampling),
    "a temperature that is no number": (
        {"prompt": "a", "temperature": math.nan},
        errors.InvalidSampling,
    ),
    "an infinite temperature": ({"prompt": "a", "temperature": math.inf}, errors.InvalidSampling),
    "a top_p of zero": ({"prompt": "a", "top_p": 0.0}, errors.InvalidSampling),
    "a top_p above one": ({"prompt": "a", "top_p": 1.5}, errors.InvalidSampling),
    "a negative top_k": ({"prompt": "a", "top_k": -1}, errors.InvalidSampling),
    "a min_p that is no number": ({"prompt": "a", "min_p": math.nan}, errors.InvalidSampling),
    "no repetition penalty": ({"prompt": "a", "repetition_penalty": 0.0}, errors.InvalidSampling),
    "a penalty that is too high": (
        {"prompt": "a", "frequency_penalty": 3.0},
        errors.InvalidSampling,
    ),
    "a bias of a token outside the vocabulary": (
        {"prompt": "a", "logit_bias": {10**6: 1.0}},
        errors.InvalidSampling,
    ),
    "an allowed token outside the vocabulary": (
        {"prompt": "a", "allowed_token_ids": [10**6]},
        errors.InvalidSampling,
    ),
    "more tokens at least than at most": (
        {"prompt": "a", "min_tokens": 9, "max_tokens": 8},
        errors.InvalidSampling,
    ),
    "a bad word that is blank": ({"prompt": "a", "bad_words": [" "]}, errors.InvalidSampling),
    "a schema that is none": (
        {"prompt": "a", "structured_output": {"json_schema": {"type": "tuple"}}},
        errors.InvalidStructuredOutput,
    ),
    "a schema that is no JSON": (
        {"prompt": "a", "structured_output": {"json_schema": "{"}},
        errors.InvalidStructuredOutput,
    ),
    "an expression that cannot be had": (
        {"prompt": "a", "structured_output": {"regex": "(?=a)b"}},
        errors.InvalidStructuredOutput,
    ),
    "no choice": (
        {"prompt": "a", "structured_output": {"choice": []}},
        errors.InvalidStructuredOutput,
    ),
    "a grammar that takes too much": (
        {
            "prompt": "a",
            "structured_output": {
                "grammar": "\n".join(["start: r0", *(f"r{n}: r{n + 1}" for n in range(4000))])
            },
        },
        errors.InvalidStructuredOutput,
    ),
    "json that is no object": (
        {"prompt": "a", "structured_output": {"json_object": False}},
        errors.InvalidStructuredOutput,
    ),
    "an empty stop string": ({"prompt": "a", "stop": [""]}, errors.InvalidArgument),
    "too many stop strings": ({"prompt": "a", "stop": ["x"] * 17}, errors.InvalidArgument),
    "too many logprobs": ({"prompt": "a", "logprobs": 21}, errors.InvalidArgument),
    "a priority that is too high": ({"prompt": "a", "priority": 101}, errors.InvalidArgument),
    "a priority that is too low": ({"prompt": "a", "priority": -101}, errors.InvalidArgument),
    "a zone that is none": ({"prompt": "a", "zone": "../edge"}, errors.InvalidArgument),
    "a negative keep_alive": ({"prompt": "a", "keep_alive": -1.0}, errors.InvalidArgument),
    "a deadline that has passed": ({"prompt": "a", "timeout": 0.0}, errors.DeadlineExceeded),
}


@pytest.mark.parametrize("what", GENERATE)
def test_generate_refuses(cluster: Cluster, deployed: str, what: str) -> None:
    arguments, expected = GENERATE[what]
    with pytest.raises(expected) as caught:
        cluster.client.complete(deployed, **arguments)
    assert len(str(caught.value)) > 10
    good = cluster.client.complete(deployed, "still here", max_tokens=1)
    assert good.usage.completion_tokens == 1


def test_generate_refuses_an_unknown_deployment(cluster: Cluster) -> None:
    with pytest.raises(errors.DeploymentNotFound, match="nobody"):
        cluster.client.complete("nobody", "a")


Broken = Callable[[Path], None]


def _empty(directory: Path) -> None:
    for path in directory.iterdir():
        path.unlink()


def _missing(directory: Path) -> None:
    shutil.rmtree(directory)


def _truncated(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def _truncated_header(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:20])


def _corrupt_header(directory: Path) -> None:
    path = directory / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[8:16] = b"\xff" * 8
    path.write_bytes(bytes(content))


def _no_tensors(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")


def _deep_header(directory: Path) -> None:
    header = b"[" * 100_000
    content = len(header).to_bytes(8, "little") + header
    (directory / "model.safetensors").write_bytes(content)


def _no_config(directory: Path) -> None:
    (directory / "config.json").unlink()


def _no_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()


def _unknown_architecture(directory: Path) -> None:
    _edit_config(directory, architectures=["SpamForCausalLM"], model_type="spam")


def _encoder(directory: Path) -> None:
    _edit_config(directory, architectures=["BertModel"], model_type="bert")


def _edit_config(directory: Path, **changes: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


SOURCES: dict[str, tuple[Broken, type[errors.SllmError]]] = {
    "a missing directory": (_missing, errors.SourceNotFound),
    "an empty directory": (_empty, errors.InvalidSource),
    "a directory without a configuration": (_no_config, errors.InvalidSource),
    "a directory without weights": (_no_weights, errors.InvalidSource),
    "truncated safetensors": (_truncated, errors.CheckpointCorrupt),
    "a truncated header": (_truncated_header, errors.CheckpointCorrupt),
    "a corrupt header": (_corrupt_header, errors.CheckpointCorrupt),
    "a header of brackets": (_deep_header, errors.CheckpointCorrupt),
    "a file without tensors": (_no_tensors, errors.InvalidSource),
    "an unknown architecture": (_unknown_architecture, errors.UnsupportedModel),
    "a model that does not generate": (_encoder, errors.UnsupportedModel),
}


@pytest.mark.parametrize("what", SOURCES)
def test_deploy_refuses_a_source(cluster: Cluster, models: Path, tmp_path: Path, what: str) -> None:
    break_it, expected = SOURCES[what]
    source = shutil.copytree(models / "tiny-llama", tmp_path / "broken")
    break_it(source)
    _refuses_deploy(cluster, expected, "broken", f"file://{source}")


def _refuses_deploy(
    cluster: Cluster, expected: type[errors.SllmError], name: str, source: str, **policy: Any
) -> None:
    before = _names(cluster)
    with pytest.raises(expected) as caught:
        cluster.client.deploy(name, source, **policy)
    assert len(str(caught.value)) > 10
    assert _names(cluster) == before


def _names(cluster: Cluster) -> list[str]:
    return [deployment.name for deployment in cluster.client.deployments()]


POLICIES: dict[str, tuple[dict[str, Any], type[errors.SllmError]]] = {
    "a name with a space": ({"name": "a b"}, errors.InvalidName),
    "an empty name": ({"name": ""}, errors.InvalidName),
    "a name that is too long": ({"name": "a" * 64}, errors.InvalidName),
    "a name in capitals": ({"name": "Tiny"}, errors.InvalidName),
    "min above max": ({"min_replicas": 2, "max_replicas": 1}, errors.InvalidArgument),
    "negative replicas": ({"min_replicas": -1}, errors.InvalidArgument),
    "no replicas": ({"max_replicas": 0}, errors.InvalidArgument),
    "a negative keep-alive": ({"keep_alive": -1.0}, errors.InvalidArgument),
    "no time for a token": ({"target_time_per_token": 0.0}, errors.InvalidArgument),
    "too long for a token": ({"target_time_per_token": 61.0}, errors.InvalidArgument),
    "a target of no requests": ({"target_concurrency": 0}, errors.InvalidArgument),
    "a negative target": ({"target_concurrency": -1}, errors.InvalidArgument),
    "a target above the maximum": (
        {"target_concurrency": 5, "max_concurrency": 4},
        errors.InvalidArgument,
    ),
    "no concurrency": ({"max_concurrency": 0}, errors.InvalidArgument),
    "an unknown dtype": ({"dtype": "float12"}, errors.InvalidArgument),
    "an empty KV cache": ({"kv_cache_tokens": 0}, errors.InvalidArgument),
    "a source of an unknown kind": ({"source": "ftp://host/model"}, errors.InvalidSource),
    "a relative source": ({"source": "models/tiny"}, errors.InvalidSource),
    "an empty source": ({"source": ""}, errors.InvalidSource),
}


@pytest.mark.parametrize("what", POLICIES)
def test_deploy_refuses(cluster: Cluster, models: Path, what: str) -> None:
    changes, expected = POLICIES[what]
    arguments = {"name": "bad", "source": f"file://{models / 'tiny-llama'}", **changes}
    _refuses_deploy(cluster, expected, arguments.pop("name"), arguments.pop("source"), **arguments)


def test_a_model_larger_than_every_node_is_refused(
    cluster: Cluster, tmp_path: Path, models: Path
) -> None:
    source = shutil.copytree(models / "tiny-llama", tmp_path / "model")
    largest = max(
        tier.capacity_bytes
        for node in cluster.client.nodes()
        for tier in node.tiers
        if tier.tier == "DRAM"
    )
    _grow(source, largest)
    _refuses_deploy(cluster, errors.ModelTooLarge, "large", f"file://{source}")


def _grow(directory: Path, size: int) -> None:
    """Makes a model's feed-forward layers so wide that they have `size` bytes: a hole in a file."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    wide = [(name, tensors.pop(name).shape) for name in list(tensors) if ".mlp." in name]
    save_file(tensors, directory / "model-00001-of-00002.safetensors")
    config = json.loads((directory / "config.json").read_text())
    hidden, former = config["hidden_size"], config["intermediate_size"]
    width = size // (hidden * 4 * len(wide)) + 1
    (directory / "config.json").write_text(json.dumps({**config, "intermediate_size": width}))
    header, end = {}, 0
    for name, shape in wide:
        begin, end = end, end + width * hidden * 4
        grown = [width if one == former else one for one in shape]
        header[name] = {"dtype": "F32", "shape": grown, "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode()
    with (directory / "model-00002-of-00002.safetensors").open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        file.truncate(file.tell() + end)
