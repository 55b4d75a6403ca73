"""Experts that come from disk as they are used: the tokens are those of the whole model."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sllm import checkpoint
from sllm.checkpoint.format.manifest_file import read_manifest
from sllm.errors import CheckpointCorrupt, NoCapacity, UnsupportedModel
from sllm.node.worker.engine.interface import EngineRequest
from sllm.node.worker.engine.transformers_engine import TransformersEngine
from sllm.node.worker.experts.modules import expert_layers
from sllm.node.worker.experts.on_demand import OnDemand, WeightsOnDisk
from sllm.sampling import Sampling
from tests.mixtures import make_mixture
from tests.node.worker.engines import CAPACITY, TIMEOUT, running
from tests.node.worker.experts.on_disk import imported, on_demand
from tests.node.worker.trial.architectures import CASES, make
from tests.node.worker.trial.outcomes import generated, generated_by

ALWAYS = ("Mixtral", "Qwen 3 MoE")
FAMILIES = [
    *ALWAYS,
    "Qwen 2 MoE",
    "OLMoE",
    "Phi 3.5 MoE",
    "FlexOlmo",
    "GLM 4 MoE",
    "ERNIE 4.5 MoE",
    "MiniMax M2",
    "HunYuan MoE",
    "dots.llm1",
]


@pytest.fixture
def reference(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    (case,) = [case for case in CASES if case.name == request.param]
    return make(case, tmp_path / "model")


@pytest.mark.parametrize(
    "reference",
    [pytest.param(name, marks=[] if name in ALWAYS else pytest.mark.nightly) for name in FAMILIES],
    indirect=True,
)
def test_the_tokens_are_those_of_the_whole_model(reference: Any, tmp_path: Path) -> None:
    weights = imported(tmp_path / "model", tmp_path / "packed", memory=0.5)
    with on_demand(weights) as (found, module):
        assert all(one.router is not None for one in expert_layers(module, found.memory))
        assert generated_by(module) == generated(reference)
        counts = found.counts
    assert counts.read > 0
    assert counts.waited_for > 0


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> WeightsOnDisk:
    directory = tmp_path_factory.mktemp("mixture")
    return imported(make_mixture(directory / "model", layers=2), directory / "packed", memory=0.6)


@pytest.mark.parametrize("reference", ALWAYS[1:], indirect=True)
def test_experts_that_are_stored_as_one_tensor_come_one_by_one(
    reference: Any, tmp_path: Path
) -> None:
    """As models have them, and as `checkpoint.save` of a model's state dict writes them."""
    packed = tmp_path / "packed"
    published = imported(tmp_path / "model", tmp_path / "published")
    checkpoint.save(reference.state_dict(), packed)
    for file in published.directory.glob("*.json"):
        if file.name != "manifest.json":
            (packed / file.name).write_bytes(file.read_bytes())
    manifest = read_manifest(packed)
    assert any(len(tensor.shape) == 3 for tensor in manifest.tensors)
    weights = WeightsOnDisk(packed, manifest.partitions, manifest.tensors, published.expert_bytes)
    with on_demand(weights) as (found, module):
        assert generated_by(module) == generated(reference)
        assert found.counts.read > 0


def test_a_file_that_is_cut_short_fails_the_engine_and_says_so(
    mixture: WeightsOnDisk, tmp_path: Path
) -> None:
    for file in mixture.directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with on_demand(replace(mixture, directory=tmp_path)) as (found, module):
        for entry in mixture.partitions:
            os.truncate(tmp_path / entry.file, 4096)
        with running(TransformersEngine(module, CAPACITY)) as harness:
            harness.engine.submit(EngineRequest("a", (5, 6, 7), Sampling(0.0, seed=0), 4))
            assert "the file ends here" in str(harness.failures.get(timeout=TIMEOUT))
        assert isinstance(found.corrupt, CheckpointCorrupt)


def test_less_memory_than_a_layer_takes_is_refused(mixture: WeightsOnDisk) -> None:
    with (
        pytest.raises(NoCapacity, match=r"expert_memory is 1.0 MiB, and the experts of one layer"),
        on_demand(replace(mixture, expert_bytes=1 << 20)),
    ):
        pass


def test_a_model_without_experts_is_refused(mixture: WeightsOnDisk) -> None:
    plain = tuple(one for one in mixture.tensors if ".experts." not in one.name)
    with pytest.raises(UnsupportedModel, match="no mixture of experts"):
        OnDemand(replace(mixture, tensors=plain))
