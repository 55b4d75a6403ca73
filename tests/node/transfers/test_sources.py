"""What a node remembers of the remote sources that it has looked at."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sllm.checkpoint.remote.remotes import Remotes
from sllm.checkpoint.sources.policy import SourcePolicy
from sllm.checkpoint.sources.remote_urls import parse_remote
from sllm.checkpoint.sources.sources import LocalSource, SourceFiles
from sllm.clock import ManualClock, MonotonicClock
from sllm.errors import SourceNotAllowed
from sllm.node.tiers.checkpoints import SourceRecord
from sllm.node.transfers.loads import Threads
from sllm.node.transfers.sources import FRESH_SECONDS, Sources
from tests.checkpoint.checkpoints import write_model
from tests.checkpoint.remote.sources import HASTY
from tests.checkpoint.remote.web import WebServer
from tests.support import assert_eventually


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


async def test_what_may_not_be_read_is_refused_whether_it_is_known_or_not(tmp_path: Path) -> None:
    """A list that was shortened holds for what was imported before."""
    write_model(tmp_path / "model")
    threads = Threads()
    policy = SourcePolicy(rules=())
    sources = Sources(threads, Remotes(HASTY, policy), tmp_path, MonotonicClock(), policy)
    place = LocalSource(tmp_path / "model")
    known = SourceRecord(place.url, "some", None, "state")
    for before in (None, known):
        with pytest.raises(SourceNotAllowed):
            await sources.look(place, None, before, fresh=True)
    await sources.close()
    threads.close()


async def test_what_is_read_stays_however_many_others_are_looked_at(
    tmp_path: Path, sources: Sources
) -> None:
    """And goes once nobody reads it any more."""

    async def files(name: str) -> SourceFiles:
        write_model(tmp_path / name)
        found = await sources.look(LocalSource(tmp_path / name), None, None, fresh=True)
        return await sources.readable(await sources.files(found))

    reading = await files("model")
    directory = reading.directory
    for number in range(20):
        await files(f"other-{number}")
    assert (directory / "config.json").exists()
    del reading
    await assert_eventually(lambda: not directory.exists())


async def test_what_is_read_until_the_end_is_deleted_as_well(
    tmp_path: Path, clock: ManualClock
) -> None:
    threads = Threads()
    sources, kept = Sources(threads, Remotes(HASTY), tmp_path / "staged", clock), []
    (tmp_path / "staged").mkdir()
    for number in range(20):
        write_model(tmp_path / f"model-{number}")
        place = LocalSource(tmp_path / f"model-{number}")
        found = await sources.look(place, None, None, fresh=True)
        kept.append(await sources.readable(await sources.files(found)))
    assert len(list((tmp_path / "staged").iterdir())) == 20
    await sources.close()
    threads.close()
    assert not list((tmp_path / "staged").iterdir())
