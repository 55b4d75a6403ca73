from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.node.device.machine import Machine
from tests.node.stores import Bench


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """A store with room for eight models on each tier."""
    bench = Bench(tmp_path)
    await bench.open()
    yield bench
    await bench.close()


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[Machine]:
    """One device with room for four models, over a pool with room for eight."""
    machine = Machine(tmp_path)
    await machine.open()
    yield machine
    await machine.close()
