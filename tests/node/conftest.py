from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.node.store import Bench


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """A store with room for eight models on each tier."""
    bench = Bench(tmp_path)
    await bench.open()
    yield bench
    await bench.close()
