"""What Deploy says of models on vLLM: tried in its zygote, beside transformers' `generate`."""

import json
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio
import torch
from safetensors.torch import load_file, save_file

from sllm.errors import UnsupportedModel
from sllm.node.instances.zygote_client import Zygote
from sllm.node.tiers.pool import Pool
from sllm.node.worker.backends.transformers_backend import TransformersBackend
from sllm.node.worker.trial.trial import try_model
from tests.node.worker.engines import needs_vllm
from tests.node.worker.trial.architectures import CASES, Case, make
from tests.quantised import KINDS, RUNNABLE, Kind, needs_int4, quantised, settings
from tests.vision import make_seeing_model

pytestmark = [
    needs_vllm,
    pytest.mark.timeout(900),  # it imports a lot
    pytest.mark.asyncio(loop_scope="module"),
]

BY_NAME = {case.name: case for case in CASES}
SCALE = "model.layers.0.mlp.up_proj.weight_scale"
SERVED = ("Llama 3.1", "Mistral", "Qwen 3", "Gemma 2", "Phi 3", "GPT-2", "OPT", "Mixtral")
"""Windows, caps, stretched positions, experts."""


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def zygote() -> AsyncIterator[Zygote]:
    pool, zygote = Pool(1 << 20, 4096), Zygote("vllm")
    zygote.start(pool.fd)
    yield zygote
    await zygote.close()
    pool.close()


@pytest.mark.parametrize("name", SERVED)
async def test_what_vllm_gives_is_what_transformers_gives(
    zygote: Zygote, tmp_path: Path, name: str
) -> None:
    make(BY_NAME[name], tmp_path)
    assert (await zygote.describe(tmp_path, None)).kv_bytes_per_token > 0


async def test_what_vllm_does_not_know_is_refused_with_its_name(
    zygote: Zygote, tmp_path: Path
) -> None:
    make(BY_NAME["Phi 3.5 MoE"], tmp_path)
    with pytest.raises(UnsupportedModel, match=r"PhimoeForCausalLM is not among .* vLLM"):
        await zygote.describe(tmp_path, None)


async def test_what_vllm_gives_otherwise_is_refused_with_what_is_to_blame(
    zygote: Zygote, tmp_path: Path
) -> None:
    make(BY_NAME["Ministral 3"], tmp_path)
    with pytest.raises(UnsupportedModel, match=r"not supported by vllm because of .*differs"):
        await zygote.describe(tmp_path, None)


async def test_heads_that_kernels_do_not_take_are_refused(zygote: Zygote, tmp_path: Path) -> None:
    make(Case("Llama", "llama"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "head_dim": 48}))
    with pytest.raises(UnsupportedModel, match="heads of 48 numbers"):
        await zygote.describe(tmp_path, None)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    make(BY_NAME["Llama 3.1"], tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", [RUNNABLE[0], RUNNABLE[2]], ids=lambda kind: kind.name)
async def test_what_is_quantised_gives_what_its_weights_stand_for(
    zygote: Zygote, plain: Path, kind: Kind
) -> None:
    quantised(plain, kind)
    assert f"torch.{(await zygote.describe(plain, None)).dtype}" == str(kind.dtype)
    with pytest.raises(UnsupportedModel, match="deploy it without dtype"):
        await zygote.describe(plain, "bfloat16")
    with pytest.raises(UnsupportedModel, match=r"quantised .*transformers does not"):
        try_model(plain, None, (), TransformersBackend())


@needs_int4
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda tensors: tensors.pop(SCALE), f"lacks {re.escape(SCALE)}"),
        (lambda tensors: tensors.update({SCALE: tensors[SCALE][:1]}), "in another shape"),
        (lambda tensors: tensors.update({SCALE: tensors[SCALE].int()}), "in another dtype"),
    ],
)
async def test_quantised_tensors_that_are_not_the_models_are_refused(
    zygote: Zygote, plain: Path, change: Callable[[dict[str, torch.Tensor]], None], says: str
) -> None:
    quantised(plain, KINDS[2])
    tensors = load_file(plain / "model.safetensors")
    change(tensors)
    save_file(tensors, plain / "model.safetensors")
    with pytest.raises(UnsupportedModel, match=says):
        await zygote.describe(plain, None)


@needs_int4
async def test_what_kernels_for_quantised_weights_do_not_take_is_refused(
    zygote: Zygote, plain: Path
) -> None:
    quantised(plain, KINDS[2])
    path = plain / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "intermediate_size": 72}))
    with pytest.raises(UnsupportedModel, match=r"72 x .* int4 weights in groups of 32"):
        await zygote.describe(plain, None)
    path.write_text(json.dumps({**config, "dtype": "float32"}))
    with pytest.raises(UnsupportedModel, match=r"served in bfloat16 .* not in float32"):
        await zygote.describe(plain, None)


async def test_quantised_models_that_see_are_refused(zygote: Zygote, tmp_path: Path) -> None:
    make_seeing_model(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "quantization_config": settings(KINDS[2])}))
    with pytest.raises(UnsupportedModel, match=r"quantised .* and sees images"):
        await zygote.describe(tmp_path, None)
