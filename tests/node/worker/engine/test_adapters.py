"""Adapters in a batch, beside PEFT's merged models: for each engine and family."""

import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sllm.node.worker.engine.adapters import Adapter, LowRank
from sllm.node.worker.engine.batch import Batch
from sllm.node.worker.engine.interface import Capacity, EngineRequest
from sllm.node.worker.model.adapter_files import TensorForm, adapter_layers
from tests.adapters import greedy_ids, make_adapter, merged
from tests.node.worker.engine.families import CONTEXT, FAMILIES, VOCABULARY, Family, make_family
from tests.node.worker.engine.test_engines import GREEDY, request
from tests.node.worker.engines import ENGINES, Harness, make_engine, running
from tests.support import wait_until

CAPACITY = Capacity(kv_tokens=4 * CONTEXT, max_requests=32, takes_adapters=True)
MAX_TOKENS = 12
LENGTHS = (1, 18, 70)
RANKS = {"first": 4, "second": 7}
CHOSEN = {"Llama", "GPT-2", "Phi 3", "Qwen 2 MoE"}
"""Layers by themselves, of GPT-2's kind, joined as published, and beside experts."""
TARGETS = {"Qwen 2 MoE": ["q_proj", "o_proj"]}
FORMS = [
    replace(one, settings={**one.settings, "num_key_value_heads": 4})
    for one in FAMILIES
    if one.name in CHOSEN
]


def adapter_at(directory: Path, name: str) -> Adapter:
    """An adapter as a worker makes it, in memory of its own."""
    tensors = load_file(directory / "adapter_model.safetensors")
    dtypes = {torch.float32: "F32", torch.bfloat16: "BF16"}
    forms = [TensorForm(key, dtypes[one.dtype], tuple(one.shape)) for key, one in tensors.items()]
    layers = adapter_layers(directory, forms)
    return Adapter(
        name,
        {key: LowRank(tensors[one.a], tensors[one.b], one.scale) for key, one in layers.items()},
    )


def prompts() -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(5)
    return [
        tuple(torch.randint(9, VOCABULARY, (length,), generator=generator).tolist())
        for length in LENGTHS
    ]


@pytest.fixture(scope="module", params=FORMS, ids=lambda one: one.name)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    form: Family = request.param
    directory = tmp_path_factory.mktemp("family")
    make_family(form, directory / "base")
    for seed, (name, rank) in enumerate(RANKS.items()):
        targets = TARGETS.get(form.name, "all-linear")
        make_adapter(directory / "base", directory / name, seed=seed, rank=rank, targets=targets)
    return directory


@pytest.fixture(params=ENGINES)
def harness(family: Path, request: pytest.FixtureRequest) -> Iterator[Harness]:
    with running(make_engine(request.param, family / "base", CAPACITY)) as harness:
        yield harness


def asked(prompt: tuple[int, ...], adapter: Adapter | None) -> EngineRequest:
    return replace(request(prompt, sampling=GREEDY, max_tokens=MAX_TOKENS), adapter=adapter)


def test_each_request_of_a_batch_has_its_own_adapter(harness: Harness, family: Path) -> None:
    """Twice: then prompts are found in the cache, by what they were computed with."""
    adapters = {name: adapter_at(family / name, name) for name in RANKS}
    for one in adapters.values():
        assert one.layers.keys() <= harness.engine.adapted_layers.keys()
    models = {
        name: merged(family / "base", family / name if name else None) for name in ("", *RANKS)
    }
    expected = {
        (name, prompt): greedy_ids(model, prompt, MAX_TOKENS)
        for name, model in models.items()
        for prompt in prompts()
    }
    for prompt in prompts():
        told = {tuple(expected[name, prompt]) for name in models}
        assert len(told) == len(models), "an adapter makes no difference"
    for _ in range(2):
        requests = {
            (name, prompt): asked(prompt, adapters.get(name))
            for prompt, name in ((prompt, name) for prompt in prompts() for name in models)
        }
        results = harness.generate(list(requests.values()))
        assert {key: results.ids(one.request_id) for key, one in requests.items()} == expected
    last = requests["second", prompts()[-1]]
    assert results.tokens[last.request_id][0].cached_prompt_tokens >= 32


def test_a_request_that_is_cancelled_amid_a_step_leaves_nothing_wrong_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rows are computed all the same, and found by the next that asks the same."""
    make_family(FORMS[0], tmp_path / "base")
    adapter = adapter_at(make_adapter(tmp_path / "base", tmp_path / "first", rank=4), "first")
    prompt = prompts()[-1]
    expected = greedy_ids(merged(tmp_path / "base", tmp_path / "first"), prompt, MAX_TOKENS)
    with running(make_engine("transformers", tmp_path / "base", CAPACITY)) as harness:
        harness.generate([asked(prompt[:40], adapter)])
        victim, computed, begin_step = asked(prompt, adapter), threading.Event(), Batch.begin_step
        victim_id = victim.request_id

        def cancelled(batch: Batch, scheduled: Sequence[Any]) -> Any:
            if any(one.state.request_id == victim_id for one in scheduled):
                harness.engine.cancel(victim_id)
                computed.set()
            return begin_step(batch, scheduled)

        monkeypatch.setattr(Batch, "begin_step", cancelled)
        harness.engine.submit(victim)
        assert computed.wait(30)
        again = asked(prompt, adapter)
        results = harness.generate([again])
        assert results.ids(again.request_id) == expected
        assert results.tokens[again.request_id][0].cached_prompt_tokens >= 64
        let_go = weakref.ref(adapter)
        del victim, again, adapter
        wait_until(lambda: let_go() is None)
