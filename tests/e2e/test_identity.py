"""Greedy output through the whole system is what transformers gives on the same files."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cluster import Cluster
from tests.e2e.conftest import FAMILIES
from tests.e2e.reference import greedy

PROMPTS = (
    "The for statement",
    "Once upon a time there was a",
    "x = [1, 2, 3]",
    "def",
    "A much longer prompt, so that requests of one batch differ in length: " + "word " * 40,
    "Ünïcödé 漢字 🙂",
    "class Spam:\n    pass\n",
    "Why",
)
MAX_TOKENS = 24


IN_PLACE = [*FAMILIES, *(f"{family}-sharded" for family in FAMILIES)]


@pytest.fixture(params=[*IN_PLACE, *(f"{family} packed" for family in FAMILIES)])
def deployment(request: pytest.FixtureRequest, cluster: Cluster, models: Path) -> Iterator[str]:
    name, _, packed = request.param.partition(" ")
    cluster.client.deploy(name, f"file://{models / name}", keep_alive=60.0, pack=bool(packed))
    yield name
    cluster.client.delete(name)
    cluster.wait_for_instances(0)


def test_cold_and_warm_and_together(cluster: Cluster, models: Path, deployment: str) -> None:
    directory = models / deployment
    expected = {prompt: greedy(directory, prompt, MAX_TOKENS) for prompt in PROMPTS}

    cold = cluster.client.complete(deployment, PROMPTS[0], max_tokens=MAX_TOKENS, temperature=0.0)
    warm = cluster.client.complete(deployment, PROMPTS[0], max_tokens=MAX_TOKENS, temperature=0.0)
    streams = {
        prompt: cluster.client.generate(deployment, prompt, max_tokens=MAX_TOKENS, temperature=0.0)
        for prompt in PROMPTS
    }
    together = {prompt: stream.result() for prompt, stream in streams.items()}

    assert cold.receipt.cold
    assert not warm.receipt.cold
    for prompt, result in [(PROMPTS[0], cold), (PROMPTS[0], warm), *together.items()]:
        assert tuple(result.token_ids) == expected[prompt].token_ids, prompt
        assert result.text == expected[prompt].text, prompt
        assert result.usage.prompt_tokens == len(expected[prompt].prompt_token_ids)
