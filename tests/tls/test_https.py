"""HTTPS whose certificate is replaced, file by file, while it is served with."""

import ssl
from pathlib import Path

import pytest
from cryptography import x509

from sllm.tls import https
from sllm.tls.https import server_context
from sllm.tls.identity import Role
from tests.tls.certs import Certs


@pytest.fixture
def renewing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Certs:
    """An authority; files are looked at with each handshake."""
    monkeypatch.setattr(https, "_LOOK_SECONDS", 0.0)
    return Certs(tmp_path)


def shown(server: ssl.SSLContext, authority: Path) -> int:
    """The serial number of the certificate that a server shows."""
    client = ssl.create_default_context(cafile=str(authority))
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(to_client, to_server, server_hostname="localhost")
    answering = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for side in (asking, answering):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    found = asking.getpeercert(binary_form=True)
    assert found is not None
    return x509.load_der_x509_certificate(found).serial_number


def serial_of(directory: Path) -> int:
    pem = (directory / "tls.crt").read_bytes()
    return x509.load_pem_x509_certificate(pem).serial_number


@pytest.mark.parametrize("first", ["tls.crt", "tls.key"])
def test_the_former_one_is_shown_until_all_files_are_replaced(renewing: Certs, first: str) -> None:
    here, new = renewing.of(Role.GATEWAY), renewing.of(Role.GATEWAY, into="new")
    before = serial_of(here)
    context = server_context(here)
    assert shown(context, renewing.authority) == before
    (here / first).write_bytes((new / first).read_bytes())
    for _ in range(2):
        assert shown(context, renewing.authority) == before
    (second,) = {"tls.crt", "tls.key"} - {first}
    (here / second).write_bytes((new / second).read_bytes())
    shown(context, renewing.authority)  # it looks at the files, and the next one has them
    assert shown(context, renewing.authority) == serial_of(new)


@pytest.mark.parametrize("nonsense", [b"", b"-----BEGIN CERTIFICATE-----\nx"])
def test_what_is_no_certificate_changes_nothing(renewing: Certs, nonsense: bytes) -> None:
    here = renewing.of(Role.GATEWAY)
    before = serial_of(here)
    context = server_context(here)
    (here / "tls.crt").write_bytes(nonsense)
    for _ in range(2):
        assert shown(context, renewing.authority) == before
