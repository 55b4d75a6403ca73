from pathlib import Path
from typing import Any

import pytest
import torch

from sllm.node.worker.engine.attention import BySequence
from sllm.node.worker.engine.interface import Capacity
from sllm.node.worker.engine.transformers_engine import TransformersEngine
from sllm.sampling import Sampling
from tests.node.worker.engine.test_engines import PROMPTS, request
from tests.node.worker.engines import CAPACITY, TIMEOUT, load, running
from tests.support import wait_until


def test_requests_of_a_batch_are_attended_to_one_by_one(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together: list[tuple[int, int]] = []
    attend = BySequence.attend

    def spy(mode: BySequence, query: Any, key: Any, *args: Any, **options: Any) -> Any:
        together.append((key.shape[1], len(mode.spans)))
        return attend(mode, query, key, *args, **options)

    monkeypatch.setattr(BySequence, "attend", spy)
    model = load(models / "tiny-llama")
    with running(TransformersEngine(model, CAPACITY)) as harness:
        harness.generate([request(prompt, max_tokens=8) for prompt in PROMPTS])
    heads, sequences = zip(*together, strict=True)
    assert max(sequences) == len(PROMPTS)
    # A key is not there once for each head that shares it.
    assert set(heads) == {model.config.num_key_value_heads}


def poison(model: Any, poisonous: int, value: float) -> None:
    """Makes one token mean no number, and with it all that follows that token."""

    def spoil(_: Any, asked: tuple[torch.Tensor], embedded: torch.Tensor) -> torch.Tensor:
        return embedded.masked_fill((asked[0] == poisonous).unsqueeze(-1), value)

    model.get_input_embeddings().register_forward_hook(spoil)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("family", ["tiny-llama", "tiny-gpt2"])
def test_logits_that_are_no_numbers_end_their_request_and_no_other(
    models: Path, family: str, value: float
) -> None:
    model = load(models / family)
    expected = (
        load(models / family)
        .generate(torch.tensor([PROMPTS[1]]), max_new_tokens=6, do_sample=False, eos_token_id=-1)[
            0, len(PROMPTS[1]) :
        ]
        .tolist()
    )
    poison(model, 999, value)
    bad = [
        request((3, 999, 5), max_tokens=6),
        request((4, 999, 5), max_tokens=1, logprobs=2),
        request((5, 999, 5), max_tokens=6, sampling=Sampling(seed=1), logprobs=0),
    ]
    good = request(PROMPTS[1], max_tokens=6)
    with running(TransformersEngine(model, CAPACITY)) as harness:
        results = harness.generate([*bad, good])
        assert results.broken == {r.request_id for r in bad}
        assert not any(results.tokens[r.request_id] for r in bad)
        assert results.ids(good.request_id) == expected
        again = request(PROMPTS[1], max_tokens=6)
        assert harness.generate([again]).ids(again.request_id) == expected
        wait_until(lambda: not harness.engine.counters.running_requests)


def test_the_cache_takes_memory_as_it_is_used(models: Path) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    before = resident()
    capacity = Capacity(kv_tokens=200_000, max_requests=1)  # 300 MB
    with running(TransformersEngine(load(models / "tiny-gpt2"), capacity)):
        grown = resident() - before
    assert grown < 100e6, "neither the cache nor the mask over it, of 200 MB"


def test_a_model_that_fails_is_told_once_and_ends_the_engine(models: Path) -> None:
    model = load(models / "tiny-llama")
    with running(TransformersEngine(model, CAPACITY)) as harness:
        harness.generate([request(max_tokens=2)])
        model.model.layers[1].mlp.down_proj.weight = torch.nn.Parameter(torch.zeros(3, 3))
        harness.engine.submit(request())
        assert isinstance(harness.failures.get(timeout=TIMEOUT), RuntimeError)
