from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.control.replicas.replicas import Replicas, replicas_of
from tests.etcd import EtcdServer


@pytest.fixture
async def pair(etcd_server: EtcdServer, tmp_path: Path) -> AsyncIterator[Replicas]:
    async with replicas_of(tmp_path, etcd_server.config()) as replicas:
        yield replicas


@pytest.fixture
async def brisk(etcd_server: EtcdServer, tmp_path: Path) -> AsyncIterator[Replicas]:
    """A pair that waits less for nodes to report to whoever comes to lead."""
    settings = {"lease_seconds": 1.0}
    async with replicas_of(tmp_path, etcd_server.config(), **settings) as replicas:
        yield replicas
