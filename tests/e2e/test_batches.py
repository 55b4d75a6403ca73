"""Batches through the whole system: what they answer, whom they leave alone, and what ends."""

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import sllm
from sllm import errors
from sllm.cli.app import app
from tests.e2e.cluster import Cluster, running
from tests.e2e.test_embedding_batches import request
from tests.support import assert_eventually, wait_until

TEXTS = 600
FAMILIES = {"a": "tiny-llama", "b": "tiny-opt", "c": "tiny-qwen2"}
KINDS: list[dict[str, Any]] = [
    {"prompt": "Once upon a time", "max_tokens": 20, "temperature": 0},
    {"prompt": "The for statement", "max_tokens": 12, "seed": 7},
    {"prompt_token_ids": [5, 6, 7], "max_tokens": 9, "temperature": 0, "logprobs": 2},
    {"prompt": "A", "max_tokens": 30, "seed": 3, "structured_output": {"regex": "(ab)*c"}},
    {"prompt": "B", "max_tokens": 16, "seed": 5, "presence_penalty": 1.5, "bad_words": ["a"]},
    {"prompt": "C", "max_tokens": 40, "seed": 2, "stop": "e", "include_stop": True},
    {"prompt": "D", "max_tokens": 10, "seed": 4, "n": 3},
    {"prompt": "Of the prompt", "max_tokens": 3, "temperature": 0, "prompt_logprobs": 2},
]


@pytest.fixture
def deployed(cluster: Cluster, models: Path, engine: str) -> Iterator[str]:
    source = f"file://{models / 'tiny-llama'}"
    cluster.client.deploy("batched", source, engine=engine, dtype="float32", keep_alive=0.0)
    yield "batched"
    cluster.client.delete("batched")
    cluster.wait_for_instances(0)


def test_each_answer_is_what_the_same_request_gets_by_itself(
    cluster: Cluster, deployed: str
) -> None:
    client = cluster.client
    requests: Any = [
        {"deployment": deployed, "request_id": f"{kind}-{copy}", **KINDS[kind]}
        for copy in range(5)
        for kind in range(len(KINDS))
    ]
    batch = client.submit_batch(requests)
    results = {one.request_id: one.result for one in client.batch_results(batch.batch_id)}
    assert results.keys() == {one["request_id"] for one in requests}
    assert client.batch(batch.batch_id).state == "ENDED"
    cluster.wait_for_instances(0, deployed)
    for kind, options in enumerate(KINDS):
        alone = client.complete(deployed, **options)
        for copy in range(5):
            found = results[f"{kind}-{copy}"]
            assert found is not None
            assert (found.text, found.token_ids) == (alone.text, alone.token_ids)
            assert [(one.text, one.finish_reason) for one in found.choices] == [
                (one.text, one.finish_reason) for one in alone.choices
            ]
            assert (found.prompt_logprobs is None) == (alone.prompt_logprobs is None)
            prompts = found.prompt_logprobs or (), alone.prompt_logprobs or ()
            for one, other in zip(*prompts, strict=True):
                assert one.token_id == other.token_id
                assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
            assert (found.finish_reason, found.stop) == (alone.finish_reason, alone.stop)
            assert len(found.logprobs or ()) == len(alone.logprobs or ())
            assert found.usage.completion_tokens == alone.usage.completion_tokens


# --- on the command line ----------------------------------------------------------------------


def sllm_batch(cluster: Cluster, *arguments: str, told: str = "") -> Result:
    control = ["--control", cluster.control.address]
    return CliRunner().invoke(app, ["batch", *arguments, *control], input=told)


def test_a_file_of_requests_becomes_lines_of_results(
    cluster: Cluster, models: Path, tmp_path: Path
) -> None:
    cluster.client.deploy("lined", f"file://{models / 'tiny-llama'}", keep_alive=0.0)
    lines = [
        {"prompt": "Once", "max_tokens": 4, "request_id": "first"},
        {"deployment": "lined", "prompt": "Twice", "max_tokens": 5},
    ]
    file = tmp_path / "requests.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    submitted = sllm_batch(cluster, "submit", str(file), "--deployment", "lined", "--id", "lines")
    assert submitted.stdout == "lines\n"
    again = sllm_batch(
        cluster, "submit", "-", "--deployment=lined", "--id=lines", told=file.read_text()
    )
    assert again.stdout == "lines\n"
    read = sllm_batch(cluster, "results", "lines")
    assert read.exit_code == 0
    told = {one["request_id"]: one for one in map(json.loads, read.stdout.splitlines())}
    assert told.keys() == {"first", "1"}
    assert len(told["1"]["result"]["token_ids"]) == 5
    (row,) = [line for line in sllm_batch(cluster, "ls").stdout.splitlines() if "lines" in line]
    assert row.split()[:5] == ["lines", "ENDED", "2", "2", "0"]
    assert sllm_batch(cluster, "cancel", "lines").stdout == "lines: ended, 2 of 2 had ended\n"
    assert sllm_batch(cluster, "rm", "lines").exit_code == 0
    assert "BATCH_NOT_FOUND" in sllm_batch(cluster, "results", "lines").stderr
    cluster.client.delete("lined")
    cluster.wait_for_instances(0)


@pytest.mark.parametrize(
    ("line", "reason", "says"),
    [
        ("{", "INVALID_ARGUMENT", "line 2"),
        ("[]", "INVALID_ARGUMENT", "line 2"),
        ('{"prompt": "a"}', "INVALID_ARGUMENT", "names its deployment"),
        ('{"deployment": "x", "prompt": "a", "max_token": 1}', "INVALID_ARGUMENT", "max_token"),
        ('{"deployment": "x", "prompt": "a", "priority": 1}', "INVALID_ARGUMENT", "priority"),
        ('{"deployment": "x", "prompt": "a"}', "DEPLOYMENT_NOT_FOUND", "number 0"),
        ('{"deployment": "x"}', "INVALID_PROMPT", "exactly one"),
        ('{"deployment": "x", "prompt": 1}', "INVALID_ARGUMENT", "not what it should be"),
        ('{"deployment": "x", "prompt": "a", "stop": 1}', "INVALID_ARGUMENT", "what it should"),
        ('{"deployment": "x", "prompt": "a", "logit_bias": [1]}', "INVALID_ARGUMENT", "list"),
        ('{"deployment": "x", "prompt": "a", "logit_bias": {"b": 1}}', "INVALID_ARGUMENT", "'b'"),
        ('{"deployment": "x", "prompt": "a", "max_tokens": 1.5}', "INVALID_ARGUMENT", "number 0"),
        ("[" * 100_000, "INVALID_ARGUMENT", "line 2"),
        ('{"deployment": "x", "messages": "a"}', "INVALID_PROMPT", ""),
        ('{"deployment": "x", "prompt": "a", "max_tokens": "b"}', "INVALID_ARGUMENT", ""),
    ],
)
def test_a_bad_line_is_told_of(cluster: Cluster, line: str, reason: str, says: str) -> None:
    refused = sllm_batch(cluster, "submit", "-", told=f"\n{line}\n")
    assert refused.exit_code == 1
    assert reason in refused.stderr
    assert says in " ".join(refused.stderr.split())


# --- beside others, and under faults ----------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[Cluster]:
    """Two nodes with room for one instance each, and three models."""
    with running(tmp_path_factory.mktemp("small"), kv_mib=64) as cluster:
        for name, family in FAMILIES.items():
            source = f"file://{models / family}"
            cluster.client.deploy(name, source, kv_cache_tokens=10**6, keep_alive=1.0)
        yield cluster


async def test_all_is_answered_once_whatever_is_killed_and_whoever_asks_meanwhile(
    small: Cluster,
) -> None:
    requests: Any = [
        {"deployment": name, "prompt": f"{name} {number}", "max_tokens": 24, "temperature": 0}
        | {"request_id": f"{name}-{number}", "ignore_eos": True}
        for number in range(50)
        for name in FAMILIES
    ]
    async with sllm.AsyncClient(small.control.address) as client:
        batch = await client.submit_batch(requests)
        reading = asyncio.create_task(_all_results(client, batch.batch_id))
        asking = asyncio.create_task(_ask(client))
        for part in (small.control, *small.nodes):
            await _until_more(client, batch.batch_id)
            part.kill()
            part.restart()
            await asyncio.to_thread(small.wait_for_nodes, 2)
        results = await asyncio.wait_for(reading, 300)
        asking.cancel()
        assert [one.number for one in results] == list(range(len(requests)))
        assert {one.request_id for one in results} == {one["request_id"] for one in requests}
        for one in results:
            assert one.result, one.error
            assert len(one.result.token_ids) == 24
        for name in FAMILIES:
            alone = await client.complete(
                name, f"{name} 7", max_tokens=24, temperature=0, ignore_eos=True
            )
            (same,) = [one for one in results if one.request_id == f"{name}-7"]
            assert same.result
            assert same.result.text == alone.text
    wait_until(lambda: not small.client.instances(), 60)


async def test_each_text_is_embedded_once_whatever_is_killed(small: Cluster, encoder: Path) -> None:
    async with sllm.AsyncClient(small.control.address) as client:
        await client.deploy("vectors", f"file://{encoder}", max_replicas=2)
        batch = await client.submit_batch(request(number) for number in range(TEXTS))
        for part in (small.control, *small.nodes):
            await _until_more(client, batch.batch_id)
            part.kill()
            part.restart()
            await asyncio.to_thread(small.wait_for_nodes, 2)
        found = await asyncio.wait_for(_all_results(client, batch.batch_id), 300)
        assert [one.number for one in found] == list(range(TEXTS))
        assert Counter(one.request_id for one in found) == Counter(map(str, range(TEXTS)))
        assert all(one.embeddings for one in found), [one.error for one in found if one.error]
        await client.delete("vectors")


async def _all_results(client: sllm.AsyncClient, batch_id: str) -> list[sllm.BatchResult]:
    return [one async for one in client.batch_results(batch_id, reattach=60.0)]


async def _until_more(client: sllm.AsyncClient, batch_id: str) -> None:
    """Returns once another twenty of a batch have ended, or all."""
    least = (await client.batch(batch_id)).finished + 20

    async def there() -> bool:
        batch = await client.batch(batch_id)
        return batch.finished >= min(least, batch.requests)

    await assert_eventually(there, timeout=60)


async def _ask(client: sllm.AsyncClient) -> None:
    """Somebody who waits for an answer, again and again."""
    while True:
        for name in FAMILIES:
            try:
                await client.complete(name, "now", max_tokens=4, timeout=60)
            except errors.Unavailable:  # what served it was killed, and the control plane as well
                await asyncio.sleep(0.1)
