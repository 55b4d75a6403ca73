"""What operators have a real cluster of three nodes do."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import sllm
from sllm import errors
from tests.e2e.cluster import START_TIMEOUT, Cluster, running
from tests.support import wait_until

NODES = 3


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes of their own: tests kill them and take them out of service."""
    with running(tmp_path_factory.mktemp("three"), nodes=NODES, dram_mib=64) as cluster:
        yield cluster


@pytest.fixture
def deployed(three: Cluster, models: Path) -> Iterator[str]:
    three.client.deploy("m", f"file://{models / 'tiny-llama'}", keep_alive=30.0)
    yield "m"
    three.client.delete("m")
    three.wait_for_instances(0)


def holders(cluster: Cluster, tier: sllm.Tier) -> dict[str, bool]:
    """The nodes that have a whole copy on a tier, and whether it is pinned there."""
    return {
        node.node_id: copy.pinned
        for node in cluster.client.nodes()
        for copy in node.copies
        if copy.tier is tier and copy.resident_bytes == copy.size_bytes
    }


def test_a_cold_model_is_explained_and_started_where_it_was_said(
    three: Cluster, deployed: str
) -> None:
    three.client.complete(deployed, "a", max_tokens=1)  # now it is known how long a start takes
    (instance,) = three.client.instances()
    wait_until(lambda: three.client.explain(deployed).action == "REUSE")
    three.client.drain(instance.node_id)
    three.client.undrain(instance.node_id)

    told = three.client.explain(deployed)
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

    result = three.client.complete(deployed, "a", max_tokens=1)
    assert result.receipt.node_id == told.node_id
    assert result.receipt.cold


def test_a_prefetched_checkpoint_is_there_before_it_is_asked_for(
    three: Cluster, models: Path
) -> None:
    source = f"file://{models / 'tiny-opt'}"
    seen: list[sllm.Progress] = []
    done = three.client.prefetch(source=source, node="node-2", ttl=60.0, on_progress=seen.append)
    assert (done.node_id, done.tier) == ("node-2", sllm.Tier.DRAM)
    copies = {node.node_id: node.copies for node in three.client.nodes()}
    held = [one for one in copies["node-2"] if one.digest == done.digest]
    assert {one.tier for one in held if one.resident_bytes == one.size_bytes} >= {sllm.Tier.DRAM}

    three.client.deploy("opt", source)
    try:
        # So small a model starts as soon from anywhere: what decides may be another node's pace.
        told = {one.node_id: one for one in three.client.explain("opt").candidates}
        assert told["node-2"].from_tier is sllm.Tier.DRAM
        receipt = three.client.complete("opt", "a", max_tokens=1).receipt
        assert receipt.from_tier is told[receipt.node_id].from_tier
    finally:
        three.client.delete("opt")


def test_a_pin_survives_the_death_of_its_node_and_of_the_control_plane(
    three: Cluster, deployed: str
) -> None:
    pin = three.client.pin(deployed, node="node-0", tier="DRAM")
    assert pin.pinned_until is None
    wait_until(lambda: holders(three, sllm.Tier.DRAM).get("node-0"), START_TIMEOUT)

    three.node_of("node-0").kill()
    three.wait_for_nodes(NODES - 1)
    three.node_of("node-0").restart()
    three.wait_for_nodes(NODES)
    wait_until(lambda: holders(three, sllm.Tier.DRAM).get("node-0"), START_TIMEOUT)

    three.control.kill()
    three.control.restart()
    three.wait_for_nodes(NODES)
    assert holders(three, sllm.Tier.DRAM)["node-0"]
    assert three.client.unpin(deployed) == [pin]
    wait_until(lambda: not holders(three, sllm.Tier.DRAM)["node-0"])


def test_a_drained_node_finishes_what_it_runs_and_gets_nothing_more(
    three: Cluster, deployed: str
) -> None:
    three.client.complete(deployed, "a", max_tokens=1)
    (instance,) = three.client.instances()
    stream = three.client.generate(deployed, "The for", max_tokens=400, ignore_eos=True)
    assert any(isinstance(event, sllm.Tokens) for event in stream)  # it runs
    progress: list[sllm.DrainProgress] = []
    drain = threading.Thread(
        target=lambda: three.client.drain(instance.node_id, on_progress=progress.append)
    )
    drain.start()
    wait_until(lambda: progress)
    assert progress[0].running_requests == 1
    draining = [node.node_id for node in three.client.nodes() if node.draining]
    assert draining == [instance.node_id]

    elsewhere = three.client.complete(deployed, "b", max_tokens=1)
    assert elsewhere.receipt.node_id != instance.node_id
    result = stream.result()
    assert result.usage.completion_tokens == 400
    drain.join(START_TIMEOUT)
    assert progress[-1] == sllm.DrainProgress(0, 0)
    three.client.undrain(instance.node_id)


def test_the_last_node_with_work_is_refused(three: Cluster, deployed: str) -> None:
    for index in range(NODES - 1):
        three.client.drain(f"node-{index}")
    last = f"node-{NODES - 1}"
    with three.client.generate(deployed, "The for", max_tokens=500, ignore_eos=True) as stream:
        assert any(isinstance(event, sllm.Tokens) for event in stream)
        with pytest.raises(errors.NodeNeeded, match=f"{last} is the last node .* m"):
            three.client.drain(last)
    for index in range(NODES - 1):
        three.client.undrain(f"node-{index}")


def test_a_watcher_sees_a_generation_come_and_go(three: Cluster, deployed: str) -> None:
    watch = three.client.watch()
    first = next(watch)
    assert len(first.nodes) == NODES
    with three.client.generate(deployed, "a", max_tokens=400, ignore_eos=True):
        assert any(
            one.in_flight and one.generated_tokens for state in watch for one in state.instances
        )
    assert any(not one.in_flight for state in watch for one in state.instances)
