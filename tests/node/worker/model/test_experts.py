"""Mixtures of experts as they are published: fused without a copy, whatever the family."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sllm.checkpoint.format import layout
from sllm.checkpoint.reading.tensors import tensors_within
from sllm.errors import UnsupportedModel
from sllm.node.tiers.pool import Pool
from sllm.node.worker.model.description import load_architecture
from sllm.node.worker.model.mapping import Mapping, map_chunks
from sllm.node.worker.model.module import build_module, build_module_on_device
from tests.node.worker.staging import CHUNK_BYTES, Staged, stage
from tests.node.worker.trial.architectures import CASES, make
from tests.node.worker.trial.outcomes import generated, generated_by

ALWAYS = ("Mixtral", "Qwen 2 MoE", "Qwen 3 MoE", "OLMoE")
FAMILIES = [
    *ALWAYS,
    "Phi 3.5 MoE",
    "FlexOlmo",
    "GLM 4 MoE",
    "ERNIE 4.5 MoE",
    "MiniMax M2",
    "HunYuan MoE",
    "dots.llm1",
]
"""Those of which checkpoints have a tensor for each expert, and that are served."""


@pytest.fixture
def pool() -> Iterator[Pool]:
    pool = Pool(4 << 20, CHUNK_BYTES)
    yield pool
    pool.close()


@pytest.fixture
def reference(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    (case,) = [case for case in CASES if case.name == request.param]
    return make(case, tmp_path / "model")


def mapped(staged: Staged, pool: Pool) -> tuple[Mapping, dict[str, torch.Tensor]]:
    """The weights as a worker finds them."""
    mapping = map_chunks(pool.fd, pool.chunk_bytes, staged.chunks)
    memory = [
        torch.frombuffer(mapping.buffer(index), dtype=torch.uint8)
        for index in range(len(staged.chunks))
    ]
    return mapping, tensors_within(staged.manifest.tensors, memory)


def outside(module: torch.nn.Module, mapping: Mapping) -> list[str]:
    """Parameters that are in other memory than the pool's."""
    return [
        name
        for name, parameter in module.named_parameters()
        if not 0 <= parameter.data_ptr() - mapping.address < mapping.size_bytes
    ]


def experts(module: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    found = {
        name: parameter for name, parameter in module.named_parameters() if ".experts." in name
    }
    assert all(parameter.dim() == 3 for parameter in found.values())
    assert found
    return found


@pytest.mark.parametrize(
    ("reference", "build"),
    [
        pytest.param(name, build, marks=[] if name in shown else pytest.mark.nightly)
        for build, shown in ((build_module, ALWAYS), (build_module_on_device, ALWAYS[:1]))
        for name in FAMILIES
    ],
    indirect=["reference"],
)
def test_experts_are_used_where_they_are_in_the_pool(
    reference: Any, build: Any, tmp_path: Path, pool: Pool
) -> None:
    staged = stage(tmp_path / "model", tmp_path / "packed", pool)
    published = [entry for entry in staged.manifest.tensors if ".experts.0." in entry.name]
    assert published, "the checkpoint has no tensor for each expert"
    mapping, weights = mapped(staged, pool)
    module = build(load_architecture(staged.directory), weights)
    assert outside(module, mapping) == []
    assert all(parameter.is_contiguous() for parameter in experts(module).values())
    assert generated_by(module) == generated(reference)


@pytest.mark.parametrize("reference", ["Mixtral", "Qwen 2 MoE"], indirect=True)
def test_what_was_packed_before_is_served_all_the_same(
    reference: Any, tmp_path: Path, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Experts one after the other, each with its projections in the order of their names."""
    monkeypatch.setattr(layout, "expert_part", lambda name: None)
    staged = stage(tmp_path / "model", tmp_path / "packed", pool)
    names = [entry.name for entry in staged.manifest.tensors if ".experts." in entry.name]
    assert [name.split(".experts.")[1].split(".")[0] for name in names[:6]] == [*"000111"]
    _, weights = mapped(staged, pool)
    architecture = load_architecture(staged.directory)
    assert generated_by(build_module(architecture, weights)) == generated(reference)


@pytest.mark.parametrize("reference", ["Mixtral"], indirect=True)
def test_on_a_device_experts_that_lie_apart_are_refused_by_name(
    reference: Any, tmp_path: Path, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "expert_part", lambda name: None)
    staged = stage(tmp_path / "model", tmp_path / "packed", pool)
    _, weights = mapped(staged, pool)
    with pytest.raises(UnsupportedModel, match=r"gate_up_proj is computed .* pack"):
        build_module_on_device(load_architecture(staged.directory), weights)
