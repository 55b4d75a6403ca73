"""What the control plane's tests share."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.control.clusters import Cluster, cluster_of
from tests.control.fake_node import FakeNode
from tests.etcd import EtcdServer, running_etcd


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    """A control plane without nodes."""
    async with cluster_of(tmp_path) as cluster:
        yield cluster


@pytest.fixture
async def node(cluster: Cluster) -> FakeNode:
    """The cluster's only node."""
    return await cluster.add_node("n1")


@pytest.fixture(scope="module")
def etcd_server() -> Iterator[EtcdServer]:
    """An etcd, of which each test has a part of its own.

    Not for longer: tests elsewhere look whether any process was left behind.
    """
    with running_etcd() as server:
        yield server
