"""What is believed of chunks that nothing proves: whoever lies, whatever comes first."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import xxhash
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from sllm.checkpoint.format.manifest import Manifest
from sllm.checkpoint.importing.chunk_workers import ChunkWorkers
from sllm.checkpoint.importing.import_plan import ImportPlan, plan_import
from sllm.checkpoint.importing.importer import import_checkpoint
from sllm.checkpoint.sources.sources import LocalSource, inspect
from sllm.clock import ManualClock
from sllm.node.peers import exchange as exchanges
from sllm.node.peers.exchange import Exchange
from sllm.node.peers.flights import Flight
from sllm.node.peers.link import Link
from sllm.node.peers.news import News
from sllm.node.peers.types import Peer
from sllm.node.peers.words import Words
from sllm.node.tiers.types import Tier
from tests.checkpoint.checkpoints import write_model
from tests.checkpoint.plans import CHUNK, run_import
from tests.node.peers.test_exchange import RECORD, Dials
from tests.properties import examples

HONEST, LIAR = "honest", "liar"
NAMES = ("a", "b", LIAR)
CHUNKS = range(3)


def truth(chunk: int) -> str:
    return f"{chunk}"


@st.composite
def events(draw: st.DrawFn) -> list[tuple[str, int, str]]:
    """Who says what of which chunk; the source is one of them, and the liar may tell the truth."""
    found = []
    for _ in range(draw(st.integers(1, 12))):
        name, chunk = draw(st.sampled_from((*NAMES, ""))), draw(st.sampled_from(CHUNKS))
        lie = draw(st.sampled_from(("", "x", "y"))) if name == LIAR else ""
        found.append((name, chunk, truth(chunk) + lie))
    return found


@given(events())
def test_nobody_is_believed_what_others_or_the_source_deny(
    told: list[tuple[str, int, str]],
) -> None:
    words, read, caught = Words(), set[int](), False
    said: dict[int, dict[str, str]] = {chunk: {} for chunk in CHUNKS}
    for name, chunk, digest in told:
        if name:
            said[chunk][name] = digest
            problem = words.hear(name, {chunk: digest})
            caught |= bool(problem)
            assert name == LIAR or not problem
        else:
            read.add(chunk)
            liars = set(words.read(chunk, digest))
            assert liars <= {LIAR}
            caught |= bool(liars)
        for one in CHUNKS:
            honest = set(said[one]) - {LIAR}
            lied = said[one].get(LIAR, truth(one)) != truth(one)
            if one in read or (honest and (caught or not lied)):
                assert words.of(one) == truth(one)
            if honest or caught or one in read:
                assert words.of(one) in (truth(one), None)
            assert not (one in read and lied and not caught)
            assert words.is_disputed(one) == (
                one not in read and not caught and lied and bool(honest)
            )


# --- a whole import ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> ImportPlan:
    directory = tmp_path_factory.mktemp("words") / "model"
    return plan_import(inspect(LocalSource(write_model(directory))), None)


@pytest.fixture(scope="module")
def manifest(plan: ImportPlan, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return run_import(plan, tmp_path_factory.mktemp("packed") / "packed")


@dataclass
class Fellows:
    """Two that have all chunks, of which one lies about some; they speak when it is their turn."""

    exchange: Exchange
    chunks: Sequence[bytes]
    wrong: frozenset[int]
    order: list[tuple[str, int]]
    """Of what they say."""
    pauses: list[int]
    """Turns between two words."""
    left: int = 0

    def content(self, name: str, chunk: int) -> bytes:
        """What one gives."""
        data = self.chunks[chunk]
        return bytes(len(data)) if name == LIAR and chunk in self.wrong else data

    def may_end(self) -> bool:
        """Has the next word said when it is its turn, and all of them before the last chunk."""
        self.left -= 1
        is_last = len(self.exchange.arrivals.news(self.exchange.arrivals.now)[0].arrived) >= (
            len(self.chunks) - 1
        )
        while self.order and (self.left < 0 or is_last):
            self._say(*self.order.pop())
            self.left = self.pauses.pop() if self.pauses else 0
        return False

    def _say(self, name: str, chunk: int) -> None:
        link = self.exchange._contacts.links.get(name)
        if link is not None:
            digest = xxhash.xxh3_128_hexdigest(self.content(name, chunk))
            layout = self.exchange._digests.layout
            news = News(Tier.REMOTE, arrived={chunk: digest}, layout=layout)
            self.exchange._told(link, news)

    def fetch(
        self, link: Link, flight: Flight, memory: memoryview, check: Callable[[], object]
    ) -> bool:
        """In the place of a call, within which others may speak."""
        memory[:] = self.content(link.peer.node_id, flight.chunk)
        flight.add(len(memory), 0.0)
        check()
        return True


@contextmanager
def fellows_of(plan: ImportPlan, network: Dials) -> Iterator[Exchange]:
    with closing(Exchange(RECORD, plan, CHUNK, network, ManualClock())) as exchange:
        for name in (HONEST, LIAR):
            exchange.meet(Peer(name, "localhost:1", fellow=True))
        yield exchange


def chunks_of(manifest: Manifest, directory: Path) -> list[bytes]:
    return [
        data[start : start + CHUNK]
        for entry in manifest.partitions
        for data in [(directory / entry.file).read_bytes()]
        for start in range(0, entry.size, CHUNK)
    ]


@examples(25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_an_import_is_what_the_source_has_whoever_lies_and_whatever_comes_first(
    plan: ImportPlan,
    manifest: Manifest,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    data: st.DataObject,
) -> None:
    directory = tmp_path_factory.mktemp("import")
    run_import(plan, directory / "true")
    chunks = chunks_of(manifest, directory / "true")
    numbers = range(len(chunks))
    wrong = data.draw(st.frozensets(st.sampled_from(numbers)))
    words = [(name, chunk) for chunk in numbers for name in (LIAR, HONEST)]
    order = data.draw(st.just(words) | st.permutations(words))
    pauses = data.draw(st.lists(st.integers(0, 3), max_size=len(words)))
    monkeypatch.setattr(exchanges, "_WATCH_SECONDS", 0.001)
    with closing(Dials()) as network, fellows_of(plan, network) as exchange:
        fellows = Fellows(exchange, chunks, wrong, list(order), pauses)
        monkeypatch.setattr(Link, "fetch", lambda link, *how: fellows.fetch(link, *how))
        with ChunkWorkers(CHUNK, threads=1) as workers:
            found = import_checkpoint(
                plan,
                directory / "copy",
                chunk_bytes=CHUNK,
                progress=lambda *_: None,
                cancelled=fellows.may_end,
                workers=workers,
                exchange=exchange,
            )
        assert found == manifest
        assert chunks_of(found, directory / "copy") == chunks
        assert not exchange.doubted
        assert (LIAR in exchange._contacts.links) == (not wrong)
        assert HONEST in exchange._contacts.links
