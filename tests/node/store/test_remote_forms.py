"""What was made ready of a packed checkpoint that lies elsewhere: brought here in its place."""

import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web
from huggingface_hub import constants

from sllm.checkpoint.format.form import read_form
from sllm.checkpoint.format.manifest_file import MANIFEST_FILE
from sllm.node.store.lease import Lease
from sllm.node.tiers.types import Tier
from sllm.node.transfers import sources
from sllm.node.transfers.work import Form
from tests.checkpoint.checkpoints import (
    assert_same,
    flip_bit,
    import_model,
    random_weights,
    tensors_in_pool,
    write_model,
)
from tests.checkpoint.remote.hub import Hub
from tests.checkpoint.remote.sources import HASTY
from tests.checkpoint.remote.web import Hit, WebServer
from tests.node.store.test_packed_forms import FORM, WEIGHTS, digest_of, made
from tests.node.stores import Bench


@pytest.fixture
def server(tmp_path: Path) -> Iterator[WebServer]:
    """Serves a packed checkpoint."""
    root = tmp_path / "web"
    import_model(write_model(tmp_path / "model"), root)
    with WebServer(root) as server:
        yield server


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path, HASTY)
    await bench.open()
    yield bench
    await bench.close()


async def ask(bench: Bench, server: WebServer, form: str = FORM.name) -> Lease:
    lease = await bench.store.promote(server.url, None, Tier.DRAM, form=Form(form))
    bench.store.check_integrity()
    return lease


async def test_only_the_form_comes(bench: Bench, server: WebServer) -> None:
    directory = made(server.root)
    published = digest_of(server.root)
    lease = await ask(bench, server)
    assert (lease.record.form, lease.record.made_of) == (FORM.name, published)
    assert [step.phase.name for step in lease.steps] == ["IMPORT"]
    found = tensors_in_pool(lease.manifest, bench.pool, lease.chunks)
    assert_same(found, random_weights(WEIGHTS))
    assert bench.on(Tier.DRAM) == bench.on(Tier.SSD) == {digest_of(directory)}
    copies = bench.store.copies()
    assert {copy.form for copy in copies} == {replace(FORM, made_of=published)}
    assert {(copy.made_for, copy.made_of) for copy in copies} == {("engine", published)}
    read = {hit.path for hit in server.hits if hit.method == "GET" and "partition-" in hit.path}
    assert read == {f"forms/{FORM.name}/partition-00000.bin"}
    lease.release()
    await bench.reopen()
    digest = digest_of(directory)
    shutil.rmtree(directory)  # it is here from now on
    lease = await ask(bench, server)
    assert (lease.digest, lease.record.form) == (digest, FORM.name)
    lease.release()


async def test_it_is_found_within_a_repository_of_a_hub(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "repository"
    import_model(write_model(tmp_path / "model"), root)
    directory = made(root)
    with Hub(root) as hub:
        template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        for form, digest in ((FORM.name, digest_of(directory)), ("engine-2", digest_of(root))):
            hub.hits.clear()
            lease = await bench.store.promote("hf://org/tiny@v1", None, Tier.DRAM, form=Form(form))
            assert lease.digest == digest
            read = {
                hit.path for hit in hub.hits if hit.method == "GET" and "partition-" in hit.path
            }
            assert read
            assert all(("forms/" in path) == (form == FORM.name) for path in read)
            lease.release()
            await bench.store.evict(digest, Tier.DRAM)
            await bench.store.evict(digest, Tier.SSD)


async def test_one_that_comes_later_is_found(
    bench: Bench, server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "FRESH_SECONDS", 0.0)
    lease = await ask(bench, server)
    assert not lease.record.form
    lease.release()
    await bench.store.evict(lease.digest, Tier.SSD)
    directory = made(server.root)
    lease = await ask(bench, server)
    assert lease.digest == digest_of(directory)
    lease.release()


async def test_without_one_what_is_published_comes(bench: Bench, server: WebServer) -> None:
    made(server.root)
    for form in ("engine-2", "engine-2"):
        lease = await ask(bench, server, form)
        assert (lease.record.form, lease.digest) == ("", digest_of(server.root))
        lease.release()


async def test_where_what_is_published_is_here_nothing_comes(
    bench: Bench, server: WebServer
) -> None:
    (await bench.store.promote(server.url, None, Tier.SSD)).release()
    made(server.root)
    lease = await ask(bench, server)
    assert (lease.record.form, lease.digest) == ("", digest_of(server.root))
    lease.release()


@pytest.mark.parametrize("fault", ["foreign", "another's", "corrupt", "cut"])
async def test_one_that_is_not_what_it_should_be_is_refused(
    bench: Bench, server: WebServer, fault: str
) -> None:
    if fault == "foreign":
        made(server.root, made_of="0" * 32)
    elif fault == "another's":
        made(server.root, replace(FORM, name="engine-2")).rename(server.root / "forms" / FORM.name)
    elif fault == "corrupt":
        flip_bit(made(server.root) / "partition-00000.bin", 100)
    else:
        (made(server.root) / "partition-00000.bin").write_bytes(b"")
    for _ in range(2):
        lease = await ask(bench, server)
        assert (lease.record.form, lease.digest) == ("", digest_of(server.root))
        lease.release()
    assert read_form(lease.directory) is None


@pytest.mark.parametrize("status", [403, 404, 503])
async def test_where_what_is_listed_cannot_be_had_what_is_published_comes(
    bench: Bench, server: WebServer, status: int
) -> None:
    """Until it can be had."""
    directory = made(server.root)

    async def refuse(request: web.Request, hit: Hit, content: bytes) -> web.Response | None:
        is_form = hit.path.startswith("forms/") and hit.name != MANIFEST_FILE
        return web.Response(status=status) if hit.method == "GET" and is_form else None

    server.fault = refuse
    lease = await ask(bench, server)
    assert (lease.record.form, lease.digest) == ("", digest_of(server.root))
    lease.release()
    server.fault = None
    await bench.store.evict(lease.digest, Tier.SSD)
    lease = await ask(bench, server)
    assert lease.digest == digest_of(directory)
    lease.release()
