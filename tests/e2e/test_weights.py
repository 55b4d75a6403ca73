"""Weights are held once, by the node: workers map them."""

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e import workers
from tests.e2e.cluster import Cluster, running


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One node."""
    with running(tmp_path_factory.mktemp("single"), nodes=1) as cluster:
        yield cluster


@pytest.fixture(scope="module", params=["packed", "in place"])
def twins(request: pytest.FixtureRequest, single: Cluster, models: Path) -> Iterator[Cluster]:
    """One node that runs two instances of one model."""
    pack = request.param == "packed"
    source = f"file://{models / 'tiny-gpt2'}"
    single.client.deploy("twins", source, min_replicas=2, max_replicas=2, pack=pack)
    single.wait_for_instances(2)
    yield single
    single.client.delete("twins")
    single.wait_for_instances(0)


def test_every_parameter_points_into_the_pool(twins: Cluster) -> None:
    for socket in workers.sockets(twins):
        status = workers.status(socket)
        begin, end = status.mapping_address, status.mapping_address + status.mapping_bytes
        assert status.parameters
        for parameter in status.parameters:
            assert begin <= parameter.address, parameter.name
            assert parameter.address + parameter.size_bytes <= end, parameter.name


def test_two_instances_share_the_pages_of_the_pool(twins: Cluster) -> None:
    _use_both(twins)
    pids = [instance.worker_pid for instance in twins.client.instances()]
    assert len(pids) == 2
    for pid in pids:
        maps = [
            one for one in psutil.Process(pid).memory_maps(grouped=False) if "memfd:" in one.path
        ]
        touched = sum(one.rss for one in maps)
        assert touched > 0
        assert sum(one.private_dirty for one in maps) == 0, "a page of weights was copied"
        assert sum(one.pss for one in maps) < 0.75 * touched, "pages are not shared"


def _use_both(twins: Cluster) -> None:
    """Has every weight read by both workers."""
    streams = [twins.client.generate("twins", "Hello", max_tokens=8) for _ in range(8)]
    for stream in streams:
        stream.result()
    for socket in workers.sockets(twins):
        assert workers.status(socket).counters.generated_tokens > 0
