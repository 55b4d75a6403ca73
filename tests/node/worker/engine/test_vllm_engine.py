"""What the engine on vLLM does beside what all engines do."""

import queue
import shutil
from pathlib import Path

import pytest
import torch

from sllm import machine
from sllm.errors import UnsupportedModel
from sllm.node.worker.engine.interface import Capacity
from sllm.node.worker.model.description import load_architecture
from sllm.sampling import Sampling
from tests.node.worker.engine.test_engines import GREEDY, PROMPTS, request
from tests.node.worker.engines import (
    TIMEOUT,
    Harness,
    Weights,
    make_engine,
    needs_vllm,
    running,
)
from tests.support import wait_until

pytestmark = needs_vllm
SAMPLED = Sampling(temperature=1.2, top_p=0.95, seed=42)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED])
def test_every_continuation_is_what_would_have_come(
    models: Path, dtype: torch.dtype, sampling: Sampling
) -> None:
    """Alone and beside others, which are computed with it; in bfloat16 as well."""
    with running(make_engine("vllm", models / "tiny-llama", dtype=dtype)) as harness:
        whole = request(sampling=sampling, max_tokens=48)
        tokens = tuple(harness.generate([whole]).ids(whole.request_id))
        cuts = range(1, len(tokens))
        alone = [
            request(
                (*whole.prompt, *tokens[:cut]),
                sampling=sampling,
                max_tokens=len(tokens) - cut,
                first_position=cut,
            )
            for cut in cuts
        ]
        found = [tuple(harness.generate([one]).ids(one.request_id)) for one in alone[::6]]
        assert found == [tokens[cut:] for cut in cuts[::6]]
        results = harness.generate(alone)
        together = [tuple(results.ids(one.request_id)) for one in alone]
        assert together == [tokens[cut:] for cut in cuts]


def test_logits_that_are_no_numbers_end_their_request_and_no_other(models: Path) -> None:
    def poison(weights: Weights) -> None:
        weights["model.embed_tokens.weight"][999] = float("nan")

    with running(make_engine("vllm", models / "tiny-llama")) as harness:
        sound = request(PROMPTS[1], max_tokens=6)
        expected = harness.generate([sound]).ids(sound.request_id)
    bad = [
        request((3, 999, 5), max_tokens=6),
        request((4, 999, 5), max_tokens=1, logprobs=2),
        request((5, 999, 5), max_tokens=6, sampling=Sampling(seed=1), logprobs=0),
        request((6, 999, 5), max_tokens=1, gives_way=True),
    ]
    good = request(PROMPTS[1], max_tokens=6)
    with running(make_engine("vllm", models / "tiny-llama", change=poison)) as harness:
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

    with running(make_engine("vllm", models / "tiny-gpt2")):
        before = resident()  # all is imported by now
    capacity = Capacity(kv_tokens=400_000, max_requests=1)  # 600 MB in float16
    with running(make_engine("vllm", models / "tiny-gpt2", capacity)):
        assert resident() - before < 100e6


def test_weights_that_are_not_the_models_are_refused(models: Path) -> None:
    def lose(weights: Weights) -> None:
        del weights["model.layers.1.mlp.down_proj.weight"]

    def gain(weights: Weights) -> None:
        weights["model.layers.1.mlp.other.weight"] = torch.zeros(3)

    def reshape(weights: Weights) -> None:
        weights["model.norm.weight"] = torch.zeros(3)

    for change in (lose, gain, reshape):
        with pytest.raises(UnsupportedModel, match=r"config\.json"):
            Harness(make_engine("vllm", models / "tiny-llama", change=change))


def test_a_core_that_fails_is_told_once_and_ends_the_engine(models: Path) -> None:
    engine = make_engine("vllm", models / "tiny-llama")
    with running(engine) as harness:
        harness.generate([request(max_tokens=2)])

        def fail() -> None:
            raise RuntimeError("the kernel has had enough")

        engine._core.model_executor.execute_model = lambda *_, **__: fail()  # type: ignore[attr-defined]
        engine.submit(request())
        assert isinstance(harness.failures.get(timeout=TIMEOUT), RuntimeError)


@pytest.mark.parametrize(("weight_bytes", "threads"), [(7 << 20, 1), (1 << 30, None)])
def test_small_models_run_on_one_thread(weight_bytes: int, threads: int | None) -> None:
    from sllm.node.worker.engine.threads import threads_for

    assert threads_for(weight_bytes) == (threads or machine.processors())


def test_steps_run_on_as_many_threads_as_that(models: Path) -> None:
    found: queue.SimpleQueue[int] = queue.SimpleQueue()
    engine = make_engine("vllm", models / "tiny-llama")
    with running(engine):
        engine._commands.put(lambda: found.put(torch.get_num_threads()))  # type: ignore[attr-defined]
        assert found.get(timeout=TIMEOUT) == 1


def test_compiled_kernels_are_found_again_from_another_directory(
    models: Path, tmp_path: Path
) -> None:
    """By vLLM's own digest, which a node, its directories and its budgets have no part in."""
    from sllm.node.worker.backends.vllm_backend import vllm_model
    from sllm.node.worker.engine.group import ALONE
    from sllm.node.worker.engine.vllm.config import engine_config
    from sllm.node.worker.engine.vllm.ranks import executor_of

    executor = executor_of(ALONE, lambda _: None)

    def digest(directory: Path, tokens: int) -> str:
        architecture = load_architecture(directory)
        model = vllm_model(directory, architecture.config, {"a": torch.zeros(1)})
        found: str = engine_config(model, Capacity(tokens, 2), object, executor).compute_hash()
        return found

    elsewhere = shutil.copytree(models / "tiny-llama", tmp_path / "elsewhere")
    here = digest(models / "tiny-llama", 1024)
    assert digest(elsewhere, 2048) == here
    assert digest(models / "tiny-qwen2", 1024) != here
