"""What Deploy says of models on vLLM: tried in its zygote, beside transformers' `generate`."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from sllm.errors import UnsupportedModel
from sllm.node.instances.zygote_client import Zygote
from sllm.node.tiers.pool import Pool
from tests.node.worker.engines import needs_vllm
from tests.node.worker.trial.architectures import CASES, Case, make

pytestmark = [
    needs_vllm,
    pytest.mark.timeout(900),  # it imports a lot
    pytest.mark.asyncio(loop_scope="module"),
]

BY_NAME = {case.name: case for case in CASES}
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
