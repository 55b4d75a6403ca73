"""What another node has made ready, fetched: real stores, with a real server between them."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from sllm import rpc
from sllm.checkpoint.format.form import WeightForm, form_file
from sllm.checkpoint.format.layout import PARTITION_BYTES
from sllm.checkpoint.saving.saving import write_tensors
from sllm.node.api.peer_service import PeerServicer
from sllm.node.peers.types import FormPeers, Network, Peer, Peers
from sllm.node.store.lease import Lease
from sllm.node.store.tier_store import _SOURCE_THREADS
from sllm.node.tiers.checkpoints import SourceRecord
from sllm.node.tiers.types import Tier
from sllm.node.transfers.work import Form
from tests.checkpoint.checkpoints import assert_same, flip_bit, random_weights, tensors_in_pool
from tests.checkpoint.plans import CHUNK
from tests.node.serving import Stalling, serving
from tests.node.stores import MODEL_BYTES, Bench
from tests.support import assert_eventually

NAME = "engine-1"
WEIGHTS = random_weights(77)


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Bench]:
    """The node that lacks the form."""
    async for bench in _bench(tmp_path / "here", Network("here", rpc.thread_channel)):
        yield bench


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[Bench]:
    """The one that has made it."""
    async for bench in _bench(tmp_path / "there"):
        yield bench


async def _bench(directory: Path, network: Network | None = None) -> AsyncIterator[Bench]:
    bench = Bench(directory)
    bench.network = network
    await bench.open()
    yield bench
    await bench.close()


@pytest.fixture
async def base(here: Bench, there: Bench) -> AsyncIterator[Lease]:
    """What is published, of which both have the same."""
    await there.leave(0, Tier.SSD)
    lease = await here.promote(0, Tier.SSD)
    yield lease
    lease.release()


async def made(
    there: Bench, base: Lease, name: str = NAME, made_of: str = "", **files: bytes
) -> str:
    """Has the other node make a form; its digest."""
    lease = await there.promote(0, Tier.SSD)
    assert lease.digest == base.digest
    form = WeightForm(name, "engine", made_of=made_of or base.digest)
    held = {"form.json": form_file(form), "ready_made.json": b"{}", **files}
    record = replace(lease.record, form=NAME, made_of=lease.digest)
    async with there.store.ready_made.making(MODEL_BYTES) as directory:
        manifest = write_tensors(WEIGHTS, directory, CHUNK, PARTITION_BYTES, held)
        await there.store.ready_made.add(record, directory, MODEL_BYTES)
    lease.release()
    return manifest.digest


def servicer(bench: Bench) -> PeerServicer:
    return PeerServicer(bench.store.sharing, bench.store.giving_pages)


def record_of(base: Lease) -> SourceRecord:
    return replace(base.record, form=NAME, made_of=base.digest)


async def fetch(
    here: Bench,
    base: Lease,
    *digests: str,
    givers: Sequence[Peer],
    form: str = NAME,
    room: int = MODEL_BYTES,
) -> bool:
    """Whether one was had; nothing is left where none was."""
    before = here.store.usage()
    offered = [FormPeers(form, Peers(tuple(givers), digest)) for digest in digests]
    had = await here.store.forms_from_peers.fetch(record_of(base), offered, room)
    here.store.check_integrity()
    assert had or here.store.usage() == before
    assert len(list((here.directory / "tier").glob(".removed*"))) == 0
    return had


async def test_what_another_node_has_made_serves_here(
    here: Bench, there: Bench, base: Lease
) -> None:
    digest = await made(there, base)
    async with serving(PeerServicer.__new__(PeerServicer)) as gone:
        pass
    async with serving(servicer(there)) as giver:
        assert await fetch(here, base, digest, givers=(replace(gone, node_id="gone"), giver))
    source, form = here.model(0), Form(NAME)
    lease = await here.store.promote(source, None, Tier.DRAM, pack=True, form=form)
    assert (lease.digest, lease.record.form, lease.record.made_of) == (digest, NAME, base.digest)
    assert_same(tensors_in_pool(lease.manifest, here.pool, lease.chunks), WEIGHTS)
    assert (lease.directory / "ready_made.json").read_bytes() == b"{}"
    lease.release()


async def test_imports_have_the_processor_as_before(here: Bench, base: Lease) -> None:
    async with serving(Stalling()) as gone:
        pass
    assert not await fetch(here, base, "0" * 32, givers=[gone])
    meeting = threading.Barrier(_SOURCE_THREADS)

    def priority() -> int:
        meeting.wait(30)  # each in a thread of its own: all of them are asked
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    importing = [here.store._import_threads.run(priority) for _ in range(_SOURCE_THREADS)]
    found = set(await asyncio.gather(*importing))
    assert found == {os.getpriority(os.PRIO_PROCESS, 0)}


def _flip(path: Path) -> None:
    flip_bit(path / "partition-00000.bin", 9000)


def _cut(path: Path) -> None:
    (path / "partition-00000.bin").write_bytes(b"")


def _rewrite(path: Path) -> None:
    (path / "ready_made.json").write_bytes(b"[]")


def _lose(path: Path) -> None:
    (path / "ready_made.json").unlink()


async def test_what_is_not_what_its_digest_says_is_not_had(
    here: Bench, there: Bench, base: Lease
) -> None:
    digest = await made(there, base)
    async with serving(servicer(there)) as giver:
        for spoil in (_flip, _rewrite, _cut, _lose):  # each leaves less than the one before
            spoil(there.directory / "tier" / digest)
            assert not await fetch(here, base, digest, givers=[giver]), spoil.__name__


SOMETHING_ELSE: Final[Mapping[str, Mapping[str, Any]]] = {
    "another form": {"name": "engine-2"},
    "of another checkpoint": {"made_of": "0" * 32},
    "a file of the store's": {".in-place.json": b"{}"},
    "a file of no form": {"a.py": b""},
}


async def test_what_is_something_else_is_not_had(here: Bench, there: Bench, base: Lease) -> None:
    async with serving(servicer(there)) as giver:
        for what, about in SOMETHING_ELSE.items():
            digest = await made(there, base, **about)
            assert not await fetch(here, base, digest, givers=[giver]), what


async def test_what_nobody_has_named_or_made_room_for_is_not_had(
    here: Bench, there: Bench, base: Lease
) -> None:
    digest = await made(there, base)
    async with serving(servicer(there)) as giver:
        assert not await fetch(here, base, base.digest, givers=[giver]), "it is not of that form"
        assert not await fetch(here, base, "0" * 32, givers=[giver]), "there is none"
        assert not await fetch(here, base, digest, givers=[giver], room=9000), "it is larger"


async def test_a_form_of_another_processor_is_not_asked_for(here: Bench, base: Lease) -> None:
    stalling = Stalling()
    async with serving(stalling) as giver:
        assert not await fetch(here, base, "0" * 32, givers=[giver], form="engine-2")
    assert not stalling.asked


@pytest.mark.parametrize("times", [0, 2], ids=["given up", "cancelled twice"])
async def test_it_ends_at_once_where_something_else_is_to_be_done(
    here: Bench, base: Lease, times: int
) -> None:
    stalling = Stalling()
    async with serving(stalling) as giver:
        fetching = asyncio.create_task(fetch(here, base, "0" * 32, "1" * 32, givers=[giver]))
        await assert_eventually(lambda: stalling.asked)
        if not times:
            here.store.forms_from_peers.end()
        for _ in range(times):
            fetching.cancel()
            await asyncio.sleep(0)
        (had,) = await asyncio.gather(fetching, return_exceptions=True)
    assert isinstance(had, asyncio.CancelledError) if times else had is False
    assert stalling.asked == 1, "what else is offered is not tried then"
    here.store.check_integrity()
