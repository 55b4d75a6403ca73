"""What a store's location means."""

from pathlib import Path

import pytest

from sllm import errors
from sllm.control.config import EtcdConfig, TlsFiles, store_at

NO_TLS = TlsFiles()
CA, CERT, KEY = Path("ca"), Path("cert"), Path("key")


def test_sqlite_is_a_directory() -> None:
    assert store_at("sqlite:/var/lib/sllm", NO_TLS) == Path("/var/lib/sllm")
    assert store_at("sqlite:~/sllm", NO_TLS) == Path.home() / "sllm"


def test_etcd_has_members_and_a_prefix() -> None:
    tls = TlsFiles(CA, CERT, KEY)
    assert store_at("etcd://a:1,b:2", NO_TLS) == EtcdConfig(("a:1", "b:2"), "/sllm/")
    assert store_at("etcd://a:1/mine/", tls) == EtcdConfig(("a:1",), "/mine/", tls)
    assert store_at("etcd://a:1/one/two", NO_TLS) == EtcdConfig(("a:1",), "/one/two/")


@pytest.mark.parametrize("location", ["", "sqlite:", "etcd:a:1", "etcd://", "/var", "s3://a"])
def test_what_is_neither_is_refused(location: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="a store is sqlite:DIR or etcd://"):
        store_at(location, NO_TLS)


def test_a_member_is_an_address() -> None:
    with pytest.raises(errors.InvalidArgument, match="a member of etcd must be host:port"):
        store_at("etcd://a:1,b", NO_TLS)


@pytest.mark.parametrize(
    "tls", [TlsFiles(CA, CERT), TlsFiles(CA, None, KEY), TlsFiles(None, CERT, KEY)]
)
def test_a_certificate_comes_with_its_key_and_its_authority(tls: TlsFiles) -> None:
    with pytest.raises(errors.InvalidArgument, match="comes with its key"):
        store_at("etcd://a:1", tls)
