from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.node.device.machine import Machine


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[Machine]:
    """One device with room for four models, over a pool with room for eight."""
    machine = Machine(tmp_path)
    await machine.open()
    yield machine
    await machine.close()
