"""What a node remembers of the remote sources that it has looked at."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sllm.checkpoint.remote.remotes import Remotes
from sllm.checkpoint.sources.remote_urls import parse_remote
from sllm.clock import ManualClock
from sllm.node.transfers.loads import Threads
from sllm.node.transfers.sources import FRESH_SECONDS, Sources
from tests.checkpoint.checkpoints import write_model
from tests.checkpoint.remote.sources import HASTY
from tests.checkpoint.remote.web import WebServer


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def sources(tmp_path: Path, clock: ManualClock) -> AsyncIterator[Sources]:
    threads = Threads()
    sources = Sources(threads, Remotes(HASTY), tmp_path, clock)
    yield sources
    await sources.close()
    threads.close()


async def test_what_is_fresh_is_not_looked_at_again_and_the_rest_is_forgotten(
    tmp_path: Path, sources: Sources, clock: ManualClock
) -> None:
    for name in "abc":
        write_model(tmp_path / "web" / name)
    with WebServer(tmp_path / "web") as server:
        places = [parse_remote(f"{server.url}/{name}") for name in "abc"]
        for place in places[:2]:
            await sources.look(place, None, None, fresh=False)
            clock.advance(FRESH_SECONDS / 2)
        hits = len(server.hits)
        await sources.look(places[1], None, None, fresh=False)
        assert len(server.hits) == hits
        await sources.look(places[2], None, None, fresh=False)
        assert set(sources._seen) == {place.url for place in places[1:]}
