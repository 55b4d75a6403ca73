"""What weights are made ready for ahead of any deployment, and what becomes of that."""

from pathlib import Path

import pytest

from sllm import checkpoint, errors
from sllm.node.instances import packing
from sllm.node.instances.packing import Target, make_ready, parse_target
from tests.checkpoint.checkpoints import flip_bit


def test_a_target_is_an_engine_and_ranks() -> None:
    assert parse_target("transformers") == Target("transformers", 1)
    assert Target("vllm", 2).label == "vllm:tp=2"


@pytest.mark.parametrize("text", ["", "llama.cpp", "vllm:", "vllm:tp=0", "vllm:tp=2,ep=1", "vllm "])
def test_what_names_nothing_is_refused(text: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="as in vllm:tp=2"):
        parse_target(text)


def test_an_engine_that_is_not_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "installed", lambda: ("transformers",))
    with pytest.raises(errors.EngineUnavailable, match="vllm is not installed"):
        parse_target("vllm:tp=2")


def test_what_cannot_be_made_leaves_nothing(models: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    checkpoint.pack(models / "tiny-llama", packed)
    with pytest.raises(errors.UnsupportedModel, match="tensor_parallel is 2"):
        make_ready(packed, Target("transformers", 2))
    flip_bit(packed / "partition-00000.bin", 9)
    with pytest.raises(errors.CheckpointCorrupt, match="partition-00000"):
        make_ready(packed, Target("transformers", 1))
    assert not list((packed / "forms").iterdir())
    assert checkpoint.inspect(packed).ready == ()
