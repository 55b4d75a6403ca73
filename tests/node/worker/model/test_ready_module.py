"""transformers' modules over ready-made weights give what they give over published ones."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sllm.errors import UnsupportedModel
from sllm.node.worker.engine.transformers_engine import TransformersEngine
from sllm.node.worker.model.description import Architecture, load_architecture
from sllm.node.worker.model.module import build_module
from sllm.node.worker.model.ready_module import build_ready_module, make_module_ready
from sllm.node.worker.ready_made.packed_weight import PackedLinear, can_pack
from tests.node.worker.engine.families import FAMILIES, Family, make_family
from tests.node.worker.engine.test_engines import request as asked
from tests.node.worker.engines import CAPACITY, running

pytestmark = pytest.mark.skipif(not can_pack(), reason="torch has no oneDNN")
PROMPT = tuple(range(9, 60))
BY_NAME = {one.name: one for one in FAMILIES}
LLAMA, GPT2, OPT = (BY_NAME[name] for name in ("Llama", "GPT-2", "OPT"))
OTHERS = [one for one in FAMILIES if one not in (GPT2, OPT)]
EACH_HEAD = replace(OPT, settings={**OPT.settings, "num_key_value_heads": 4})


@pytest.fixture(params=[*OTHERS, EACH_HEAD], ids=lambda one: one.name)
def family(request: pytest.FixtureRequest) -> Family:
    """All but GPT-2, whose linear layers are none of torch's."""
    return request.param  # type: ignore[no-any-return]


def published(family: Family, directory: Path) -> tuple[Architecture, dict[str, torch.Tensor]]:
    make_family(family, directory)
    weights = {
        name: tensor
        for file in directory.glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }
    return load_architecture(directory), weights


def greedy(module: torch.nn.Module) -> list[int]:
    with running(TransformersEngine(module, CAPACITY)) as harness:
        one = asked(PROMPT, max_tokens=20)
        return harness.generate([one]).ids(one.request_id)


def test_tokens_are_those_of_published_weights(family: Family, tmp_path: Path) -> None:
    architecture, weights = published(family, tmp_path)
    ready = make_module_ready(architecture, weights)
    module = build_ready_module(architecture, ready)
    packed = [layer for layer in module.modules() if isinstance(layer, PackedLinear)]
    assert len(packed) == len(ready.packed) > 0
    assert greedy(module) == greedy(build_module(architecture, weights))


def test_each_weight_is_kept_once(family: Family, tmp_path: Path) -> None:
    """But for what is read as rows as well."""
    architecture, weights = published(family, tmp_path)
    ready = make_module_ready(architecture, weights)
    assert ready.plain.keys().isdisjoint(ready.replaced.values())
    assert ready.plain.keys() | set(ready.replaced.values()) == weights.keys()
    assert ready.packed.keys() - ready.replaced.keys() <= {"lm_head"}


def test_weights_that_are_read_as_they_are_published_are_not_made_ready(tmp_path: Path) -> None:
    """Such as those of a type for which oneDNN has no kernels."""
    architecture, weights = published(LLAMA, tmp_path)
    halves = {name: one.half() for name, one in weights.items()}
    with pytest.raises(UnsupportedModel, match="as they are published"):
        make_module_ready(architecture, halves)


def test_those_of_another_model_are_refused(tmp_path: Path) -> None:
    architecture, weights = published(LLAMA, tmp_path / "llama")
    other, _ = published(GPT2, tmp_path / "gpt2")
    ready = make_module_ready(architecture, weights)
    with pytest.raises(UnsupportedModel):
        build_ready_module(other, ready)
    wrong = {**ready.packed, "model.norm": next(iter(ready.packed.values()))}
    with pytest.raises(UnsupportedModel, match=r"model\.norm"):
        build_ready_module(architecture, replace(ready, packed=wrong))
