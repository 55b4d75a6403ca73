"""Quantised weights on vLLM's kernels for processors, beside what they stand for."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from platform import machine
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sllm.errors import UnsupportedModel
from sllm.node.worker.model.description import Architecture
from tests.node.worker.engine.families import CONTEXT, FAMILIES, make_family
from tests.node.worker.engine.test_engines import request
from tests.node.worker.engine.test_vllm_families import (
    CAPACITY,
    NEW_TOKENS,
    OTHERS,
    PROMPTS,
    logprobs_of,
    made_prompts,
    tokens,
)
from tests.node.worker.engines import Harness, make_engine, needs_vllm, running
from tests.quantised import KINDS, RUNNABLE, Kind, quantised, settings

pytestmark = needs_vllm
NEAR = 0.7
"""Of logarithms of probabilities: what one rounding the other way, or bfloat16, comes to."""


@dataclass(frozen=True)
class Made:
    kind: Kind
    directory: Path
    reference: Any


@pytest.fixture(scope="module", params=RUNNABLE, ids=lambda kind: kind.name)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    kind: Kind = request.param
    directory = tmp_path_factory.mktemp("quantised")
    (family,) = [one for one in FAMILIES if one.name == "Qwen 2"]  # some layers have biases
    make_family(family, directory)
    return Made(kind, directory, quantised(directory, kind))


@pytest.fixture(scope="module")
def harness(made: Made) -> Iterator[Harness]:
    engine: Any = make_engine("vllm", made.directory, CAPACITY)
    with running(engine) as harness:
        engine._commands.put(lambda: torch.set_num_threads(2))  # as larger models have them
        yield harness


def test_it_gives_what_the_weights_stand_for(made: Made, harness: Harness) -> None:
    for prompt in PROMPTS:
        one = request(prompt, max_tokens=1, logprobs=5)
        (token,) = harness.generate([one]).tokens[one.request_id]
        with torch.inference_mode():
            expected = made.reference(torch.tensor([prompt])).logits[0, -1].float().log_softmax(-1)
        assert token.logprob
        for top in token.logprob.top:
            assert top.logprob == pytest.approx(float(expected[top.token_id]), abs=NEAR)


def test_others_in_a_step_do_not_change_a_bit(harness: Harness) -> None:
    alone = logprobs_of(harness)
    asked = [request(prompt, max_tokens=NEW_TOKENS, logprobs=0) for prompt in PROMPTS]
    others = [request(prompt, max_tokens=30) for prompt in OTHERS]
    results = harness.generate([*asked, *others])
    beside = [
        [
            (each.token_id, each.logprob.logprob)
            for each in results.tokens[one.request_id]
            if each.logprob
        ]
        for one in asked
    ]
    assert beside == alone


def test_continuations_are_what_would_have_come(made: Made, harness: Harness) -> None:
    """As after a migration or a failover: in another engine, from the tokens so far."""
    (prompt,) = made_prompts((CONTEXT // 8,), seed=9)
    (whole,) = tokens(harness, [prompt])
    with running(make_engine("vllm", made.directory, CAPACITY)) as elsewhere:
        for cut in (1, NEW_TOKENS // 2):
            one = request((*prompt, *whole[:cut]), max_tokens=NEW_TOKENS - cut, first_position=cut)
            assert tuple(elsewhere.generate([one]).ids(one.request_id)) == whole[cut:]


def test_ready_made_weights_give_the_same_bits_where_a_kernel_reads_them(
    made: Made, harness: Harness
) -> None:
    making: Any = make_engine("vllm", made.directory, CAPACITY)
    if made.kind.quantisation.bits == 8:
        with pytest.raises(UnsupportedModel, match="memory of its own"):
            making.make_ready()
        return
    ready = making.make_ready()
    assert not any("attn.k_scale" in name for name in ready.plain)
    expected = logprobs_of(harness)
    engine: Any = make_engine("vllm", made.directory, CAPACITY, ready=ready)
    with running(engine) as over_ready:
        engine._commands.put(lambda: torch.set_num_threads(2))
        assert logprobs_of(over_ready) == expected
        model = engine._core.model_executor.driver_worker.worker.model_runner.model
        bound = dict(model.named_parameters())
        kept = [name for name in bound if re.search("weight_(packed|scale)$", name)]
        assert len(kept) == 2 * 4 * 3  # of the linear layers in each layer
        for name in kept:  # where they lie: nothing was copied
            assert bound[name].data_ptr() == ready.plain[name].data_ptr(), name
    name = next(name for name in ready.plain if name.endswith("weight_packed"))
    smaller = replace(ready, plain={**ready.plain, name: ready.plain[name][:1]})
    unfit: Any = make_engine("vllm", made.directory, CAPACITY, ready=smaller)
    with pytest.raises(UnsupportedModel, match=re.escape(name)):  # kernels would read beyond it
        Harness(unfit)


@pytest.mark.parametrize(
    ("kind", "capability", "says"),
    [
        (KINDS[0], "adds_int8_exactly", "whose products .* cannot add up exactly"),
        (KINDS[2], "has_int4_kernel", "quantised to 4 bits, and vLLM has no kernel"),
    ],
    ids=lambda one: getattr(one, "name", None),
)
def test_a_processor_without_what_it_takes_is_told_by_name(
    kind: Kind, capability: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sllm.node.worker.backends import vllm_checks  # which only some environments have

    config = LlamaConfig(quantization_config=settings(kind))
    architecture = Architecture(config, LlamaForCausalLM)
    monkeypatch.setattr(vllm_checks, capability, lambda: False)
    with pytest.raises(UnsupportedModel, match=says):
        vllm_checks.check_quantisation(architecture)
    monkeypatch.setattr(vllm_checks, capability, lambda: True)
    vllm_checks.check_quantisation(architecture)


@pytest.mark.skipif(machine() != "x86_64", reason="others have such instructions")
@pytest.mark.parametrize(
    ("flags", "exact"),
    [("avx2 fma", False), ("avx2 avx_vnni", True), ("avx512f avx512_vnni", True)],
)
def test_vnni_is_what_exact_sums_take(flags: str, exact: bool, tmp_path: Path) -> None:
    from sllm.node.worker.backends import vllm_checks  # which only some environments have

    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"flags\t\t: fpu {flags}\n")
    assert vllm_checks.adds_int8_exactly(cpuinfo) is exact
