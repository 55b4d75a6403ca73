"""What operators have a real cluster of four nodes do."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import sllm
from sllm import errors
from tests.e2e.cluster import START_TIMEOUT, Cluster, running
from tests.support import wait_until

NODES = 4


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Four nodes of their own: tests kill them and take them out of service."""
    with running(tmp_path_factory.mktemp("four"), nodes=NODES, dram_mib=64) as cluster:
        yield cluster


@pytest.fixture
def deployed(four: Cluster, models: Path) -> Iterator[str]:
    four.client.deploy("m", f"file://{models / 'tiny-llama'}", keep_alive=30.0)
    yield "m"
    four.client.delete("m")
    four.wait_for_instances(0)


def holders(cluster: Cluster, tier: sllm.Tier) -> dict[str, bool]:
    """The nodes that have a whole copy on a tier, and whether it is pinned there."""
    return {
        node.node_id: copy.pinned
        for node in cluster.client.nodes()
        for copy in node.copies
        if copy.tier is tier and copy.resident_bytes == copy.size_bytes
    }


def test_a_cold_model_is_explained_and_started_where_it_was_said(
    four: Cluster, deployed: str
) -> None:
    four.client.complete(deployed, "a", max_tokens=1)  # now it is known how long a start takes
    (instance,) = four.client.instances()
    wait_until(lambda: four.client.explain(deployed).action == "REUSE")
    four.client.drain(instance.node_id)
    four.client.undrain(instance.node_id)

    told = four.client.explain(deployed)
    assert told.action is sllm.PlacementAction.START
    assert told.node_id == instance.node_id
    assert told.estimate is not None
    assert told.why.startswith(f"{told.node_id} is ready soonest, in "), told.why
    chosen, *others = told.candidates
    assert chosen.from_tier is sllm.Tier.DRAM
    assert len(others) == NODES - 1
    for one in others:
        # A small model is loaded while its worker is prepared, wherever it comes from.
        assert one.estimate is not None
        assert one.estimate >= told.estimate
        why_not = "later than" if one.estimate > told.estimate else "no sooner than"
        assert f"{why_not} {told.node_id}" in one.verdict

    result = four.client.complete(deployed, "a", max_tokens=1)
    assert result.receipt.node_id == told.node_id
    assert result.receipt.cold


def test_a_prefetched_checkpoint_is_there_before_it_is_asked_for(
    four: Cluster, models: Path
) -> None:
    source = f"file://{models / 'tiny-opt'}"
    seen: list[sllm.Progress] = []
    done = four.client.prefetch(source=source, node="node-2", ttl=60.0, on_progress=seen.append)
    assert (done.node_id, done.tier) == ("node-2", sllm.Tier.DRAM)
    copies = {node.node_id: node.copies for node in four.client.nodes()}
    held = [one for one in copies["node-2"] if one.digest == done.digest]
    assert {one.tier for one in held if one.resident_bytes == one.size_bytes} >= {sllm.Tier.DRAM}

    four.client.deploy("opt", source)
    try:
        # So small a model starts as soon from anywhere: what decides may be another node's pace.
        told = {one.node_id: one for one in four.client.explain("opt").candidates}
        assert told["node-2"].from_tier is sllm.Tier.DRAM
        receipt = four.client.complete("opt", "a", max_tokens=1).receipt
        assert receipt.from_tier is told[receipt.node_id].from_tier
    finally:
        four.client.delete("opt")


def test_a_pin_survives_the_death_of_its_node_and_of_the_control_plane(
    four: Cluster, deployed: str
) -> None:
    pin = four.client.pin(deployed, node="node-3", tier="DRAM")
    assert pin.pinned_until is None
    wait_until(lambda: holders(four, sllm.Tier.DRAM).get("node-3"))

    four.node_of("node-3").kill()
    four.wait_for_nodes(NODES - 1)
    four.node_of("node-3").restart()
    four.wait_for_nodes(NODES)
    wait_until(lambda: holders(four, sllm.Tier.DRAM).get("node-3"), START_TIMEOUT)

    four.control.kill()
    four.control.restart()
    four.wait_for_nodes(NODES)
    assert holders(four, sllm.Tier.DRAM)["node-3"]
    assert four.client.unpin(deployed) == [pin]
    wait_until(lambda: not holders(four, sllm.Tier.DRAM)["node-3"])


def test_a_drained_node_finishes_what_it_runs_and_gets_nothing_more(
    four: Cluster, deployed: str
) -> None:
    four.client.complete(deployed, "a", max_tokens=1)
    (instance,) = four.client.instances()
    stream = four.client.generate(deployed, "The for", max_tokens=400, ignore_eos=True)
    assert any(isinstance(event, sllm.Tokens) for event in stream)  # it runs
    progress: list[sllm.DrainProgress] = []
    drain = threading.Thread(
        target=lambda: four.client.drain(instance.node_id, on_progress=progress.append)
    )
    drain.start()
    wait_until(lambda: progress)
    assert progress[0].running_requests == 1
    draining = [node.node_id for node in four.client.nodes() if node.draining]
    assert draining == [instance.node_id]

    elsewhere = four.client.complete(deployed, "b", max_tokens=1)
    assert elsewhere.receipt.node_id != instance.node_id
    result = stream.result()
    assert result.usage.completion_tokens == 400
    drain.join(START_TIMEOUT)
    assert progress[-1] == sllm.DrainProgress(0, 0)
    four.client.undrain(instance.node_id)


def test_the_last_node_with_work_is_refused(four: Cluster, deployed: str) -> None:
    for index in range(NODES - 1):
        four.client.drain(f"node-{index}")
    last = f"node-{NODES - 1}"
    with four.client.generate(deployed, "The for", max_tokens=500, ignore_eos=True) as stream:
        assert any(isinstance(event, sllm.Tokens) for event in stream)
        with pytest.raises(errors.NodeNeeded, match=f"{last} is the last node .* m"):
            four.client.drain(last)
    for index in range(NODES - 1):
        four.client.undrain(f"node-{index}")


def test_a_watcher_sees_a_generation_come_and_go(four: Cluster, deployed: str) -> None:
    watch = four.client.watch()
    first = next(watch)
    assert len(first.nodes) == NODES
    running = threading.Thread(
        target=lambda: four.client.complete(deployed, "a", max_tokens=100, ignore_eos=True)
    )
    running.start()
    assert any(one.in_flight and one.generated_tokens for state in watch for one in state.instances)
    assert any(not one.in_flight for state in watch for one in state.instances)
    running.join(START_TIMEOUT)
