"""What tests of the services over HTTP share."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.control.clusters import Cluster, cluster_of
from tests.control.fake_node import FakeNode
from tests.gateway.connect.serving import Door, door_of


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    """A control plane without nodes."""
    async with cluster_of(tmp_path) as cluster:
        yield cluster


@pytest.fixture
async def node(cluster: Cluster) -> FakeNode:
    """The cluster's only node."""
    return await cluster.add_node("n1")


@pytest.fixture
async def door(cluster: Cluster) -> AsyncIterator[Door]:
    """Its services over HTTP."""
    async with door_of(cluster.address) as door:
        yield door
