"""What an import has to do with other nodes, where they are of no use to it."""

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from serverlessllm.v1 import peer_service_pb2 as pb
from serverlessllm.v1 import types_pb2

from sllm import rpc
from sllm.checkpoint.format.form import is_of_form
from sllm.checkpoint.format.manifest import FileEntry, Manifest, make_manifest
from sllm.checkpoint.format.manifest_file import encode_manifest
from sllm.checkpoint.format.plain_files import MAX_SMALL_BYTES
from sllm.checkpoint.importing.chunk_plan import plan_chunks
from sllm.checkpoint.importing.exchange import Contents, Turn
from sllm.checkpoint.importing.import_plan import ImportPlan, plan_import
from sllm.checkpoint.sources.sources import LocalSource, inspect
from sllm.clock import ManualClock, MonotonicClock
from sllm.node.peers import wire
from sllm.node.peers.contacts import MOST, Contacts
from sllm.node.peers.exchange import Exchange
from sllm.node.peers.flights import Flight, Flights
from sllm.node.peers.link import Link
from sllm.node.peers.manifests import CopyTerms, manifest_of, manifest_to_copy
from sllm.node.peers.news import News
from sllm.node.peers.types import Network, Peer, Peers
from sllm.node.tiers.checkpoints import SourceRecord
from sllm.node.tiers.types import Tier
from tests.checkpoint.checkpoints import write_model
from tests.checkpoint.plans import CHUNK, run_import

RECORD = SourceRecord("http://localhost/model", "now", None)
FELLOW = Peer("other", "localhost:1", fellow=True)
HOLDER = Peer("holder", "localhost:1")


class Dials(Network):
    """A network in which nobody answers, and whom it was to reach."""

    def __init__(self) -> None:
        super().__init__("self", self._dial)
        self.dialled: list[str] = []
        self._silent = socket.create_server(("127.0.0.1", 0), backlog=2 * MOST)

    def _dial(self, address: str) -> grpc.Channel:
        self.dialled.append(address)
        return rpc.thread_channel(f"127.0.0.1:{self._silent.getsockname()[1]}")

    def close(self) -> None:
        """Nobody is reached any more."""
        self._silent.close()


@pytest.fixture
def plan(tmp_path: Path) -> ImportPlan:
    return plan_import(inspect(LocalSource(write_model(tmp_path / "model"))), None)


@pytest.fixture
def manifest(plan: ImportPlan, tmp_path: Path) -> Manifest:
    return run_import(plan, tmp_path / "packed")


@pytest.fixture
def network() -> Iterator[Dials]:
    with closing(Dials()) as network:
        yield network


@pytest.fixture
def exchange(plan: ImportPlan, network: Dials) -> Iterator[Exchange]:
    with closing(Exchange(RECORD, plan, CHUNK, network, MonotonicClock())) as exchange:
        yield exchange


def said(exchange: Exchange, peer: Peer, news: News) -> None:
    exchange._told(exchange._contacts.links[peer.node_id], news)


def is_followed(exchange: Exchange, peer: Peer) -> bool:
    return peer.node_id in exchange._contacts.links


@pytest.mark.parametrize("arrived", [{}, {0: "0" * 32}])
def test_a_holder_whose_chunks_nobody_can_check_is_done_without(
    exchange: Exchange, arrived: dict[int, str]
) -> None:
    exchange.meet(HOLDER)
    said(exchange, HOLDER, News(Tier.SSD, whole=not arrived, arrived=arrived))
    assert not is_followed(exchange, HOLDER)
    exchange.meet(HOLDER)
    assert not is_followed(exchange, HOLDER), "it is of no use, whenever it is named"


def test_fellows_are_believed_what_they_have_got_of_a_source_that_was_not_packed(
    exchange: Exchange,
) -> None:
    exchange.meet(FELLOW)
    layout = exchange._digests.layout
    said(exchange, FELLOW, News(Tier.REMOTE, arrived={0: "ab" * 16}, layout=layout))
    assert is_followed(exchange, FELLOW)
    assert exchange._digests.of(0) == "ab" * 16
    assert exchange.expected == {}, "what comes from the source is not held against their word"


def test_what_manifests_of_fellows_deny_comes_from_the_source(
    exchange: Exchange, plan: ImportPlan, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, layout = replace(FELLOW, node_id="another"), exchange._digests.layout
    for one in (FELLOW, other):
        exchange.meet(one)
    said(exchange, FELLOW, News(Tier.REMOTE, arrived={0: "ab" * 16}, layout=layout))
    exchange.begin(Contents(list(plan_chunks(plan.layout, CHUNK)), (), None, ()))
    while (turn := exchange.take(lambda: None)).giver is None:
        pass
    told = News(Tier.REMOTE, manifest=encode_manifest(manifest), layout=layout)
    said(exchange, other, told)
    monkeypatch.setattr(Link, "fetch", lambda *_: True)
    assert exchange.fetch(turn, memoryview(bytearray(CHUNK)), lambda: None) is None
    exchange.failed(turn)
    assert exchange.take(lambda: None) == Turn(turn.chunk)


def test_a_fellow_that_reads_the_source_into_other_chunks_is_done_without(
    exchange: Exchange,
) -> None:
    exchange.meet(FELLOW)
    said(exchange, FELLOW, News(Tier.REMOTE, arrived={0: "ab" * 16}, layout="other"))
    assert not is_followed(exchange, FELLOW)
    assert exchange._digests.of(0) is None


def test_not_more_nodes_are_followed_than_help(exchange: Exchange, network: Dials) -> None:
    for number in range(3 * MOST):
        exchange.meet(Peer(f"n{number}", "localhost:1", fellow=True))
    assert len(network.dialled) == MOST


@pytest.mark.parametrize(("was_heard", "times"), [(True, 2), (False, 20)])
def test_one_that_falls_silent_is_asked_again_a_few_times(
    network: Dials, times: int, *, was_heard: bool
) -> None:
    """Or a moment without an answer would have all that it holds come from the source."""
    clock, lock = ManualClock(), threading.Condition()
    told: Any = lambda *_: None  # noqa: E731
    contacts = Contacts(RECORD, network, clock, lock, told, told)
    returns = 0
    with lock:
        due = [HOLDER]
        while due:
            (peer,) = due
            assert contacts.meet(peer, wants_manifest=False)
            contacts.links[peer.node_id].was_heard = was_heard
            contacts.lose(contacts.links[peer.node_id])
            assert not contacts.links
            assert contacts.tidy() == [], "not at once"
            clock.advance(1.0)
            due = contacts.tidy()
            returns += len(due)
        dropped = contacts.take_dropped()
    assert returns == times
    for link in dropped:
        link.close()
        link.join()


def test_one_that_gives_again_is_asked_again_as_often_as_before(network: Dials) -> None:
    clock, lock = ManualClock(), threading.Condition()
    told: Any = lambda *_: None  # noqa: E731
    contacts = Contacts(RECORD, network, clock, lock, told, told)
    with lock:
        for _ in range(10):
            assert contacts.meet(HOLDER, wants_manifest=False)
            link = contacts.links[HOLDER.node_id]
            link.was_heard = True
            contacts.came_from(HOLDER.node_id)
            contacts.lose(link)
            clock.advance(1.0)
            assert contacts.tidy() == [HOLDER]
        dropped = contacts.take_dropped()
    for link in dropped:
        link.close()
        link.join()


def test_whoever_has_a_part_in_wrong_chunks_again_and_again_is_refused(exchange: Exchange) -> None:
    exchange.meet(FELLOW)
    with exchange._changed:
        exchange._contacts.doubt(FELLOW.node_id)
    assert is_followed(exchange, FELLOW), "it may have been the other one"
    with exchange._changed:
        exchange._contacts.doubt(FELLOW.node_id)
    assert not is_followed(exchange, FELLOW)


def test_a_chunk_that_does_not_come_is_given_up_whatever_is_said() -> None:
    flights, silent, pretending = Flights(), Flight(0, 10, 0, 0.0), Flight(1, 10, 0, 0.0)
    flights.launch(silent, "silent")
    flights.launch(pretending, "pretending")
    assert list(flights.failing(2.0)) == []
    pretending.add(0, 2.0)
    assert list(flights.failing(4.0)) == [("silent", False)]
    flights.land(silent)
    for second in range(4, 40):
        pretending.add(0, float(second))
    assert list(flights.failing(40.0)) == [("pretending", True)]


def test_digests_of_other_chunks_are_of_no_use(plan: ImportPlan, manifest: Manifest) -> None:
    encoded = encode_manifest(manifest)
    assert manifest_of(encoded, manifest.digest, plan, CHUNK) == manifest
    assert manifest_of(encoded, manifest.digest, plan, 2 * CHUNK) is None
    assert manifest_of(encoded, "0" * 32, plan, CHUNK) is None


@pytest.mark.parametrize("size", [MAX_SMALL_BYTES, MAX_SMALL_BYTES + 1])
def test_files_that_are_not_small_are_not_copied(manifest: Manifest, size: int) -> None:
    files = (FileEntry("form.json", size, "ab" * 16),)
    large = make_manifest(manifest.tensors, manifest.partitions, files)
    terms = CopyTerms(CHUNK, 2 * MAX_SMALL_BYTES, is_of_form)
    with pytest.raises(ValueError, match="not small") if size > MAX_SMALL_BYTES else nullcontext():
        assert manifest_to_copy(encode_manifest(large), large.digest, terms) == large


def test_a_way_that_was_closed_gives_nothing_and_fails_nobody(network: Dials) -> None:
    link = Link(FELLOW, RECORD, network, MonotonicClock().now)
    link.close()
    memory = memoryview(bytearray(10))
    assert not link.fetch(Flight(0, 10, 0, 0.0), memory, lambda: None)


def test_one_whose_news_cannot_be_taken_in_is_not_waited_for(
    network: Dials, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, ended = Link(FELLOW, RECORD, network, MonotonicClock().now), threading.Event()
    monkeypatch.setattr(link, "_hear", lambda *_, **__: 1 // 0)
    link.follow(lambda _: None, ended.set, wants_manifest=False)
    assert ended.wait(30)
    link.close()


@pytest.mark.parametrize(
    "ranges",
    [[(0, 1 << 20)] * 2, [(0, 0)], [(-1, 1)], [(1 << 20, 1)], [(0, -1)]],
    ids=["too many in all", "none", "before the first", "too far", "fewer than none"],
)
def test_chunks_that_cannot_be_are_not_taken_in(ranges: list[tuple[int, int]]) -> None:
    arrived = [pb.ChunkRange(first=first, count=count) for first, count in ranges]
    with pytest.raises(ValueError, match="are none"):
        wire.news(pb.FollowChunksResponse(tier=types_pb2.TIER_DRAM, arrived=arrived))


def test_the_loop_that_takes_nodes_in_does_not_wait_for_a_manifest_to_be_read(
    exchange: Exchange, manifest: Manifest, network: Dials, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, go_on = threading.Event(), threading.Event()

    def slow(*args: Any) -> Manifest | None:
        reading.set()
        assert go_on.wait(30)
        return manifest_of(*args)

    monkeypatch.setattr("sllm.node.peers.digests.manifest_of", slow)
    exchange.add(Peers((), manifest.digest))
    link = Link(FELLOW, RECORD, network, MonotonicClock().now)
    news = News(Tier.SSD, whole=True, manifest=encode_manifest(manifest))
    telling = threading.Thread(target=exchange._told, args=(link, news))
    telling.start()
    assert reading.wait(30)
    meeting = threading.Thread(target=exchange.meet, args=(Peer("third", "localhost:2", True),))
    meeting.start()
    meeting.join(30)
    assert not meeting.is_alive(), "it waits for the manifest"
    go_on.set()
    telling.join(30)
    link.close()


def test_what_is_said_of_chunks_arrives_as_it_was_said() -> None:
    news = News(
        Tier.REMOTE,
        arrived={3: "03" * 16, 1: "01" * 16, 4: "04" * 16},
        begun=(7, 8),
        left={9: "b", 10: "b", 12: "c"},
        asks="d",
        layout="l",
    )
    assert wire.news(wire.news_message(news)) == news


def test_digests_that_are_not_those_of_what_has_come_are_not_taken_in() -> None:
    arrived = [pb.ChunkRange(first=0, count=2)]
    message = pb.FollowChunksResponse(tier=types_pb2.TIER_DRAM, arrived=arrived, digests=b"0" * 16)
    with pytest.raises(ValueError, match="are not the digests"):
        wire.news(message)
