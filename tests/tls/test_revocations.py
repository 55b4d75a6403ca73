"""Certificates that count no more, before the day on which they end."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sllm import errors, rpc
from sllm.tls import certificates, revocations
from sllm.tls.authority import issue, make_authority, revoke
from sllm.tls.identity import Role
from tests.support import assert_eventually
from tests.tls.certs import Certs, dial_with
from tests.tls.test_peers import Orders, _do, _method


@pytest.fixture
def certs(tmp_path: Path) -> Certs:
    return Certs(tmp_path / "ca")


@pytest.fixture
async def orders(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Orders, str]]:
    monkeypatch.setattr(certificates, "_LOOK_SECONDS", 0.0)
    monkeypatch.setattr(revocations, "_LOOK_SECONDS", 0.01)
    served = Orders(certs.tls(Role.NODE))
    yield served, await served.start()
    await served.server.stop(0)


def control(certs: Certs, name: str) -> rpc.Dial:
    """A control plane's way to nodes, by a certificate of its own."""
    return dial_with(certs.of(Role.CONTROL, into=name), certs.authority, Role.NODE)


def put(certs: Certs, orders: Orders) -> None:
    shutil.copy(certs.directory / "ca.crl", orders.tls.certificates.directory)


async def read_to_its_end(call: Any) -> None:
    while await call.read():
        pass


async def test_one_that_is_revoked_is_refused_and_no_other(
    orders: tuple[Orders, str], certs: Certs
) -> None:
    served, address = orders
    gone, stays = control(certs, "gone"), control(certs, "stays")
    assert await _do(gone, address) == b"order"
    revoke(certs.directory, certs.directory / "gone")
    assert await _do(gone, address) == b"order"  # nobody has told the server
    put(certs, served)
    with pytest.raises(errors.PermissionDenied, match="was revoked"):
        await _do(gone, address)
    assert await _do(stays, address) == b"order"
    revoke(certs.directory, certs.directory / "stays" / "tls.crt")
    put(certs, served)
    for dial in (gone, stays):
        with pytest.raises(errors.PermissionDenied, match="was revoked"):
            await _do(dial, address)
    assert await _do(control(certs, "stays"), address) == b"order"  # issued anew


async def test_what_goes_on_ends_when_its_certificate_is_revoked(
    orders: tuple[Orders, str], certs: Certs
) -> None:
    served, address = orders
    gone, stays = control(certs, "gone"), control(certs, "stays")
    async with gone(address) as ends, stays(address) as goes_on:
        call, other = (_method(one, "Count")(b"", timeout=30.0) for one in (ends, goes_on))
        await call.read()
        revoke(certs.directory, certs.directory / "gone")
        put(certs, served)
        with pytest.raises(errors.PermissionDenied, match="was revoked"), rpc.typed_errors():
            await read_to_its_end(call)
        assert await other.read() == b"0"
        other.cancel()


async def test_what_ends_slowly_is_told_once_that_its_certificate_was_revoked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it leaves behind is cleaned up in peace."""
    monkeypatch.setattr(revocations, "_LOOK_SECONDS", 0.01)
    revoked: set[int] = set()
    looks = 0

    def looked() -> set[int]:
        nonlocal looks
        looks += 1
        return revoked

    watching = revocations.Revocations(looked)
    monkeypatch.setattr(revocations, "_serial", lambda context: context)
    cleaned = asyncio.Event()

    async def call(serial: int) -> None:
        with watching.watched(serial):
            try:
                await asyncio.Event().wait()
            finally:
                before = looks  # those for the other call go on
                await assert_eventually(lambda: serial == 8 or looks > before + 2)
                cleaned.set()

    gone, other = (asyncio.create_task(call(serial)) for serial in (7, 8))
    await asyncio.sleep(0)
    revoked.add(7)
    with pytest.raises(errors.PermissionDenied, match="was revoked"):
        await gone
    assert cleaned.is_set()
    assert not other.done()
    other.cancel()
    await asyncio.gather(other, return_exceptions=True)


async def test_a_list_that_somebody_else_has_signed_changes_nothing(
    orders: tuple[Orders, str], certs: Certs, tmp_path: Path
) -> None:
    served, address = orders
    gone = control(certs, "gone")
    make_authority(tmp_path / "other", 10)
    issue(tmp_path / "other", ["a.example.com"], tmp_path / "other" / "a", 10)
    revoke(tmp_path / "other", tmp_path / "other" / "a")
    shutil.copy(tmp_path / "other" / "ca.crl", served.tls.certificates.directory)
    assert await _do(gone, address) == b"order"
    (served.tls.certificates.directory / "ca.crl").write_text("none")
    assert await _do(gone, address) == b"order"
    revoke(certs.directory, certs.directory / "gone")
    put(certs, served)

    async def is_refused() -> bool:
        with pytest.raises(errors.PermissionDenied):
            await _do(gone, address)
        return True

    await assert_eventually(is_refused)


def test_what_the_authority_has_not_issued_it_does_not_revoke(certs: Certs, tmp_path: Path) -> None:
    make_authority(tmp_path / "other", 10)
    issue(tmp_path / "other", ["a.example.com"], tmp_path / "other" / "a", 10)
    for what in (tmp_path / "other" / "a", tmp_path / "none"):
        with pytest.raises(errors.InvalidArgument, match="is no certificate of"):
            revoke(certs.directory, what)
    assert not (certs.directory / "ca.crl").exists()


def test_what_is_issued_later_comes_with_the_list(certs: Certs) -> None:
    revoke(certs.directory, certs.of(Role.NODE, into="gone"))
    made = certs.of(Role.NODE, into="new")
    assert (made / "ca.crl").read_bytes() == (certs.directory / "ca.crl").read_bytes()
    assert len(certificates.read(made).revoked) == 1
