"""The life of a deployment: cold, warm, scaled to zero, cold again from memory, gone."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import sllm
from sllm import errors
from tests.e2e.cluster import Cluster

PROMPT = "The for statement"


@pytest.fixture
def source(models: Path) -> str:
    return f"file://{models / 'tiny-llama'}"


@pytest.fixture
def deployed(cluster: Cluster, source: str, engine: str) -> Iterator[str]:
    cluster.client.deploy("life", source, engine=engine, keep_alive=0.2)
    yield "life"
    cluster.client.delete("life")


def test_a_cold_request_tells_its_story_in_order(cluster: Cluster, deployed: str) -> None:
    stream = cluster.client.generate(deployed, PROMPT, max_tokens=4, temperature=0.0)
    events = list(stream)

    kinds = [type(event).__name__ for event in events]
    assert kinds[0] == "Queued"
    assert kinds[-1] == "Finished"
    assert kinds.index("Started") < kinds.index("Tokens")
    assert set(kinds) >= {"Queued", "Loading", "Started", "Tokens", "Finished"}
    assert [event.sequence for event in events] == list(range(len(events)))


def test_after_keep_alive_the_instance_goes_and_the_weights_stay(
    cluster: Cluster, deployed: str
) -> None:
    cluster.client.complete(deployed, PROMPT, max_tokens=4, temperature=0.0)
    cluster.wait_for_instances(0, deployed)
    holders = _nodes_with_it_in_memory(cluster, deployed)
    second = cluster.client.complete(deployed, PROMPT, max_tokens=4, temperature=0.0)

    assert second.receipt.cold
    assert second.receipt.engine == cluster.client.deployment(deployed).engine
    assert second.receipt.from_tier == "DRAM"
    assert second.receipt.node_id in holders, "it starts where the weights are"
    kinds = {phase.kind for phase in second.receipt.phases}
    assert kinds >= {"QUEUED", "PLACED", "WORKER_START", "PREPARE", "ATTACH", "PREFILL"}
    assert not kinds & {"IMPORT", "READ_SSD"}


def _nodes_with_it_in_memory(cluster: Cluster, deployment: str) -> set[str]:
    """More than one, where other deployments of the same source have been served before."""
    source = cluster.client.deployment(deployment).source
    return {
        node.node_id
        for node in cluster.client.nodes()
        for copy in node.copies
        if copy.tier == "DRAM" and source in copy.sources
    }


def test_the_same_weights_under_two_names_are_held_once(
    cluster: Cluster, deployed: str, source: str, engine: str
) -> None:
    cluster.client.deploy("life-too", source, engine=engine)
    cluster.client.complete(deployed, PROMPT, max_tokens=1)
    result = cluster.client.complete("life-too", PROMPT, max_tokens=1)
    cluster.client.delete("life-too")

    assert result.receipt.from_tier == "DRAM"


def test_a_repeated_deploy_changes_the_policy_only(cluster: Cluster, deployed: str) -> None:
    before = cluster.client.deployment(deployed)
    after = cluster.client.deploy(deployed, before.source, keep_alive=5.0)
    assert (before.keep_alive, after.keep_alive) == (0.2, 5.0)
    assert after.engine == before.engine
    assert after.source == before.source


def test_a_name_serves_one_source(cluster: Cluster, deployed: str, models: Path) -> None:
    with pytest.raises(errors.DeploymentExists):
        cluster.client.deploy(deployed, f"file://{models / 'tiny-opt'}")


def test_min_replicas_are_kept_without_requests(cluster: Cluster, source: str, engine: str) -> None:
    cluster.client.deploy("kept", source, engine=engine, min_replicas=1, keep_alive=0.0)
    cluster.wait_for_instances(1, "kept")
    result = cluster.client.complete("kept", PROMPT, max_tokens=1)
    cluster.client.delete("kept")
    cluster.wait_for_instances(0, "kept")

    assert not result.receipt.cold


def test_a_deleted_deployment_is_gone(cluster: Cluster, source: str, engine: str) -> None:
    cluster.client.deploy("gone", source, engine=engine)
    cluster.client.complete("gone", PROMPT, max_tokens=1)
    cluster.client.delete("gone")

    cluster.wait_for_instances(0, "gone")
    assert "gone" not in [deployment.name for deployment in cluster.client.deployments()]
    with pytest.raises(errors.DeploymentNotFound):
        cluster.client.complete("gone", PROMPT, max_tokens=1)


def test_seeded_draws_repeat_and_others_differ(cluster: Cluster, deployed: str) -> None:
    def draw(seed: int) -> tuple[int, ...]:
        result = cluster.client.complete(deployed, PROMPT, max_tokens=16, seed=seed)
        return tuple(result.token_ids)

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_stop_strings_and_logprobs(cluster: Cluster, deployed: str) -> None:
    whole = cluster.client.complete(deployed, PROMPT, max_tokens=24, temperature=0.0, logprobs=2)
    stop = whole.text[5:8]
    cut = cluster.client.complete(deployed, PROMPT, max_tokens=24, temperature=0.0, stop=[stop])

    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.finish_reason == "STOP"
    assert whole.logprobs is not None
    assert len(whole.logprobs) == len(whole.token_ids)
    assert all(
        one.top[0].token_id == token
        for one, token in zip(whole.logprobs, whole.token_ids, strict=True)
    )


async def test_the_asynchronous_client_does_the_same(cluster: Cluster, deployed: str) -> None:
    async with sllm.AsyncClient(cluster.control.address) as client:
        stream = client.generate(deployed, PROMPT, max_tokens=4, temperature=0.0)
        events = [event async for event in stream]
        again = await client.complete(deployed, PROMPT, max_tokens=4, temperature=0.0)

    assert type(events[-1]).__name__ == "Finished"
    assert tuple(again.token_ids) == tuple((await stream.result()).token_ids)
