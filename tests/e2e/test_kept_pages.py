"""Conversations that return to a model that is cold again: what was computed of them comes back."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import sllm
from tests.e2e.cluster import Cluster, running
from tests.node.worker.engines import needs_vllm
from tests.support import wait_until

PAGE = 16
"""Tokens; vLLM's have twice as many."""
PROMPT = [1 + n * 7 % 200 for n in range(10 * PAGE + 5)]
"""Ten whole pages of the cache, and a little more."""
TOKENS = 24
OPTIONS = ("--kv-cache-dram", "64MiB", "--kv-cache-ssd", "64MiB")


@pytest.fixture(scope="module")
def keeping(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[Cluster]:
    """A node that keeps pages, and models that are cold after each request."""
    directory = tmp_path_factory.mktemp("keeping")
    with running(directory, nodes=1, node_options=OPTIONS) as cluster:
        for name in ("kept", "other"):
            deploy(cluster, name, models, "transformers")
        yield cluster


def deploy(cluster: Cluster, name: str, models: Path, engine: str) -> None:
    source = f"file://{models / 'tiny-llama'}"
    cluster.client.deploy(name, source, engine=engine, dtype="float32", keep_alive=0.0)


def ask(cluster: Cluster, prompt: list[int], name: str = "kept") -> sllm.Result:
    """A greedy answer, of a model that is cold."""
    cluster.wait_for_instances(0)
    return cluster.client.complete(
        name, prompt_token_ids=prompt, max_tokens=TOKENS, temperature=0.0, ignore_eos=True
    )


def kept(answer: sllm.Result) -> dict[str, int]:
    """Tokens of its prompt that were kept, by tier."""
    return {str(one.tier): one.tokens for one in answer.receipt.kept_prompt}


def other_prompt(number: int) -> list[int]:
    return [token + number for token in PROMPT]


def test_a_conversation_returns_to_a_cold_model(keeping: Cluster) -> None:
    check_return(keeping, PAGE)
    assert not kept(ask(keeping, PROMPT, "other")), "it is another deployment's"


@needs_vllm
@pytest.mark.nightly  # starts take a while
@pytest.mark.timeout(900)
def test_it_returns_on_vllm_as_well(tmp_path: Path, models: Path) -> None:
    with running(tmp_path, nodes=1, node_options=OPTIONS, engines=("vllm",)) as cluster:
        deploy(cluster, "kept", models, "vllm")
        check_return(cluster, 2 * PAGE)


def check_return(cluster: Cluster, page: int) -> None:
    """Has a conversation return twice, the second time longer."""
    first = ask(cluster, PROMPT)
    assert not kept(first)
    again = ask(cluster, PROMPT)
    assert again.receipt.cold
    assert again.token_ids == first.token_ids
    assert kept(again) == {"DRAM": 10 * PAGE}
    assert again.usage.cached_prompt_tokens == 10 * PAGE
    longer = ask(cluster, [*PROMPT, *first.token_ids, 5])
    whole = (len(PROMPT) + TOKENS - 1) // page  # the last token was never computed
    assert kept(longer) == {"DRAM": whole * page}, "what was generated is kept as well"


@pytest.mark.nightly  # it starts a node twice
def test_it_outlives_the_node_and_what_is_damaged_is_computed(keeping: Cluster) -> None:
    prompts = [other_prompt(1), other_prompt(2)]
    answers = [ask(keeping, prompt) for prompt in prompts]
    (node,) = keeping.nodes
    assert node.stop() == 0
    for pages in keeping.directory.glob("node-*/checkpoints/.kept-*/pages"):
        written = pages.read_bytes()
        pages.write_bytes(written[:-PAGE] + bytes(PAGE))  # in the last page of the last request
    keeping.restart_dead()
    node.wait_for_zygotes()
    again = ask(keeping, prompts[0])
    assert kept(again) == {"SSD": 10 * PAGE}
    damaged = ask(keeping, [*prompts[1], *answers[1].token_ids, 5])
    assert kept(damaged) == {"DRAM": 10 * PAGE}, "it has been read already, up to what is damaged"
    assert not kept(ask(keeping, prompts[0])), "nobody trusts what lay beside it"
    assert kept(ask(keeping, prompts[0])) == {"DRAM": 10 * PAGE}


def test_a_killed_worker_holds_nothing(keeping: Cluster) -> None:
    expected = ask(keeping, other_prompt(3))
    keeping.wait_for_instances(0)
    stream = keeping.client.generate(
        "kept", prompt_token_ids=other_prompt(3), max_tokens=200, temperature=0.0, ignore_eos=True
    )
    events = iter(stream)
    wait_until(lambda: isinstance(next(events), sllm.Tokens))
    (instance,) = keeping.client.instances("kept")
    keeping.signal_worker(instance.instance_id, signal.SIGKILL)
    tokens = stream.result().token_ids
    assert tokens[:TOKENS] == expected.token_ids
    assert len(tokens) == 200
    assert kept(ask(keeping, other_prompt(3))) == {"DRAM": 10 * PAGE}
