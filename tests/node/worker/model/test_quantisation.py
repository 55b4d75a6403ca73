"""Which quantised models are served, told by config.json alone."""

from types import SimpleNamespace
from typing import Any

import pytest

from sllm.errors import UnsupportedModel
from sllm.node.worker.model.quantisation import quantisation_of
from tests.quantised import KINDS, Kind, settings

INT8, _, INT4, CHANNELS = KINDS


def found(config: Any) -> Any:
    return quantisation_of("A", SimpleNamespace(quantization_config=config))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_what_tools_write_is_known(kind: Kind) -> None:
    assert found(settings(kind)) == kind.quantisation
    assert found(settings(kind) | {"ignore": ["re:.*lm_head"]}) == kind.quantisation
    assert found(settings(kind) | {"sparsity_config": {"format": "dense"}}) == kind.quantisation


def test_plain_weights_are_not_quantised() -> None:
    assert found(None) is None
    assert quantisation_of("A", SimpleNamespace()) is None


@pytest.mark.parametrize("kind", [INT8, INT4, CHANNELS], ids=lambda kind: kind.name)
@pytest.mark.parametrize(
    "changes",
    [
        {"quant_method": "gptq"},
        {"quant_method": None},
        {"format": "float-quantized"},
        {"format": "marlin-24"},
        {"ignore": []},
        {"ignore": ["lm_head", "model.layers.0.mlp.down_proj"]},
        {"ignore": "lm_head"},
        {"config_groups": {}},
        {"config_groups": []},
        {"config_groups": None},
        {"config_groups": {"group_0": None}},
        {"kv_cache_scheme": {"num_bits": 8, "type": "float"}},
        {"sparsity_config": {"format": "sparse-24-bitmask"}},
        {"transform_config": {"config_groups": {"a": {}}}},
    ],
    ids=repr,
)
def test_others_are_refused_with_their_name(kind: Kind, changes: dict[str, Any]) -> None:
    changed = settings(kind) | changes
    with pytest.raises(UnsupportedModel, match=r"A is quantised \(") as refusal:
        found(changed)
    assert len(refusal.value.message) < 1000


@pytest.mark.parametrize("kind", [INT8, INT4, CHANNELS], ids=lambda kind: kind.name)
@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("weights", {"num_bits": 6}),
        ("weights", {"num_bits": "4"}),
        ("weights", {"type": "float"}),
        ("weights", {"symmetric": False}),
        ("weights", {"strategy": "block"}),
        ("weights", {"strategy": "group", "group_size": 0}),
        ("weights", {"strategy": "group", "group_size": 33}),
        ("weights", {"strategy": "group", "group_size": None}),
        ("weights", {"actorder": "group"}),
        ("weights", {"dynamic": True}),
        ("input_activations", {"num_bits": 4}),
        ("input_activations", {"strategy": "tensor"}),
        ("input_activations", {"dynamic": False}),
        ("input_activations", {"symmetric": False}),
    ],
    ids=repr,
)
def test_other_groups_are_refused(kind: Kind, part: str, changes: dict[str, Any]) -> None:
    changed = settings(kind)
    group = changed["config_groups"]["group_0"]
    group[part] = {**(group[part] or {}), **changes}
    with pytest.raises(UnsupportedModel, match="in a way that is not supported"):
        found(changed)


@pytest.mark.parametrize("config", [{}, 5, "int4", [], {"quant_method": "x" * 10_000}], ids=repr)
def test_what_is_no_such_configuration_is_refused_in_few_words(config: Any) -> None:
    with pytest.raises(UnsupportedModel) as refusal:
        found(config)
    assert len(refusal.value.message) < 1000
