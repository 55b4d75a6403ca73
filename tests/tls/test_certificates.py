"""Certificates as they lie in a directory."""

import os
import shutil
import stat
from pathlib import Path

import pytest

from sllm import errors
from sllm.tls import certificates
from sllm.tls.authority import issue, make_authority
from sllm.tls.certificates import Certificates, read
from sllm.tls.cluster import ClusterTls
from sllm.tls.identity import Role, cluster_of, name_of, role_of, roles_in
from tests.tls.certs import Certs


@pytest.fixture
def certs(tmp_path: Path) -> Certs:
    return Certs(tmp_path / "ca")


@pytest.fixture(autouse=True)
def looking_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "_LOOK_SECONDS", 0.0)


def test_roles_are_those_of_the_own_cluster_alone() -> None:
    names = ["node.prod.sllm.internal", "gateway.test.sllm.internal", "*.prod.sllm.internal", "a.b"]
    assert roles_in(names, "prod") == {Role.NODE}
    assert (
        roles_in(["node.prod.sllm.internal.evil.com", "x.node.prod.sllm.internal"], "prod") == set()
    )


@pytest.mark.parametrize("names", [[], ["host"], ["node.a.sllm.internal", "node.b.sllm.internal"]])
def test_a_certificate_is_of_one_cluster(names: list[str]) -> None:
    with pytest.raises(errors.InvalidArgument, match="of no cluster, or of several"):
        cluster_of(names)


@pytest.mark.parametrize("cluster", ["", "A", "a.b", "-a", "a" * 64])
def test_a_cluster_has_a_name_that_hosts_may_have(cluster: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="cannot be called"):
        name_of(Role.NODE, cluster)


def test_an_unknown_role_is_refused() -> None:
    with pytest.raises(errors.InvalidArgument, match="there are control, node, gateway, metrics"):
        role_of("worker")


def test_keys_are_their_users_alone_and_an_authority_is_not_replaced(certs: Certs) -> None:
    directory = certs.of(Role.NODE)
    for key in (directory / "tls.key", certs.directory / "ca.key"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    with pytest.raises(errors.InvalidArgument, match="is there already"):
        make_authority(certs.directory, 1)


def test_no_certificate_outlives_its_authority(certs: Certs) -> None:
    assert read(certs.of(Role.NODE, days=4000)).expires_at == read_authority_end(certs)


def read_authority_end(certs: Certs) -> object:
    from cryptography import x509

    return x509.load_pem_x509_certificate(certs.authority.read_bytes()).not_valid_after_utc


@pytest.mark.parametrize("host", ["a b", "-x", "http://host", ""])
def test_what_is_no_host_is_refused(certs: Certs, tmp_path: Path, host: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="no host name or address"):
        issue(certs.directory, ["ok", host], tmp_path / "out", 1)
    assert not (tmp_path / "out").exists()


def test_an_authority_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidArgument, match="`sllm certs init` makes one"):
        issue(tmp_path, ["node"], tmp_path / "out", 1)


@pytest.mark.parametrize("missing", ["tls.crt", "tls.key", "ca.crt"])
def test_what_is_not_there_is_told(certs: Certs, missing: str) -> None:
    directory = certs.of(Role.NODE)
    (directory / missing).unlink()
    with pytest.raises(errors.InvalidArgument, match=missing):
        Certificates(directory)


def test_a_key_of_another_certificate_is_told(certs: Certs) -> None:
    directory, other = certs.of(Role.NODE), certs.of(Role.CONTROL)
    shutil.copy(other / "tls.key", directory / "tls.key")
    with pytest.raises(errors.InvalidArgument, match="is not the key of"):
        Certificates(directory)


def test_a_process_needs_a_certificate_of_its_role(certs: Certs) -> None:
    with pytest.raises(errors.InvalidArgument, match="is of no control"):
        ClusterTls(certs.of(Role.NODE), Role.CONTROL)
    assert ClusterTls(certs.of(Role.NODE, Role.CONTROL), Role.CONTROL).cluster == "default"


def test_renewed_files_are_taken_up_once_they_belong_together(certs: Certs) -> None:
    directory = certs.of(Role.NODE)
    kept = Certificates(directory)
    first = kept.current
    new = certs.of(Role.NODE, into="new")

    shutil.copy(new / "tls.crt", directory / "tls.crt")
    assert kept.current is first
    os.replace(new / "tls.key", directory / "tls.key")
    assert kept.current.certificate == (directory / "tls.crt").read_bytes() != first.certificate
    (directory / "tls.crt").unlink()
    assert kept.current.certificate != first.certificate
