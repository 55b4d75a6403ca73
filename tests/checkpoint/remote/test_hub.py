"""Models on the hub: its client reads its environment when it is imported, so it has processes."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sllm.checkpoint.format.manifest_file import read_manifest
from tests.checkpoint.checkpoints import (
    assert_pooling,
    assert_same,
    import_model,
    random_weights,
    tensors_on_disk,
    write_model,
    write_pooling,
)
from tests.checkpoint.remote.hub import COMMIT, TOKEN, Hub

SCRIPT = """
import json, sys
from pathlib import Path
from sllm.errors import SllmError
from tests.checkpoint.remote.sources import bring

try:
    brought = bring(sys.argv[1], Path(sys.argv[2]))
    print(json.dumps({"digest": brought.manifest.digest}))
except SllmError as error:
    print(json.dumps({"reason": error.reason, "message": str(error)}))
"""

DOWNLOAD = """
import sys
from huggingface_hub import snapshot_download
print(snapshot_download(sys.argv[1], allow_patterns=sys.argv[2:] or None))
"""


@dataclass
class Client:
    """A machine with the hub's client, its cache and its environment."""

    directory: Path
    endpoint: str

    def run(self, script: str, *arguments: str, **environment: str) -> str:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        ours = {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(self.directory / "hf"),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_XET": "1",
        }
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments],
            env={**inherited, **ours, **environment},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert TOKEN not in done.stderr
        return done.stdout.splitlines()[-1]

    def bring(self, url: str, out: str = "a", **environment: str) -> dict[str, str]:
        found = json.loads(self.run(SCRIPT, url, str(self.directory / out), **environment))
        assert TOKEN not in str(found)
        return dict(found)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with Hub(write_model(tmp_path / "repository")) as hub:
        yield hub


@pytest.fixture
def client(hub: Hub, tmp_path: Path) -> Client:
    return Client(tmp_path, hub.url)


@pytest.mark.parametrize("revision", ["", "@v1", f"@{COMMIT}"])
def test_a_model_comes_as_from_a_directory(
    hub: Hub, client: Client, tmp_path: Path, revision: str
) -> None:
    digest = client.bring(f"hf://org/tiny{revision}")["digest"]
    assert digest == import_model(hub.root, tmp_path / "import").digest
    manifest = read_manifest(tmp_path / "a" / "out")
    assert_same(tensors_on_disk(manifest, tmp_path / "a" / "out"), random_weights())


@pytest.mark.parametrize("cached", [False, True])
def test_a_packed_checkpoint_keeps_its_digest(tmp_path: Path, cached: bool) -> None:
    """What else lies in the repository is none of it."""
    packed = import_model(write_model(tmp_path / "model"), tmp_path / "repository")
    (tmp_path / "repository" / "README.md").write_text("Of a model.")
    with Hub(tmp_path / "repository") as hub:
        client = Client(tmp_path, hub.url)
        if cached:
            client.run(DOWNLOAD, "org/tiny")
            hub.hits.clear()
        assert client.bring("hf://org/tiny")["digest"] == packed.digest
        came = {hit.name for hit in hub.hits if hit.method == "GET" and "/resolve/" in hit.path}
        assert "README.md" not in came
        assert ("partition-00000.bin" in came) != cached


@pytest.mark.parametrize("cached", [False, True])
def test_how_a_model_pools_comes_along(
    hub: Hub, client: Client, tmp_path: Path, cached: bool
) -> None:
    write_pooling(hub.root)
    if cached:
        client.run(DOWNLOAD, "org/tiny")
    digest = client.bring("hf://org/tiny")["digest"]
    out = tmp_path / "a" / "out"
    assert_pooling(read_manifest(out), out)
    assert digest == import_model(hub.root, tmp_path / "import").digest


def test_what_the_cache_has_is_not_asked_for(hub: Hub, client: Client) -> None:
    client.run(DOWNLOAD, "org/tiny")
    hub.hits.clear()
    assert "digest" in client.bring("hf://org/tiny")
    assert not [hit for hit in hub.hits if "/resolve/" in hit.path]


def test_what_the_cache_has_in_part_is_asked_for(hub: Hub, client: Client) -> None:
    client.run(DOWNLOAD, "org/tiny", "*.json")
    assert "digest" in client.bring("hf://org/tiny")
    assert {hit.name for hit in hub.hits if hit.method == "GET"} >= {"model.safetensors"}


@pytest.mark.parametrize("revision", ["", "@main", f"@{COMMIT}"])
def test_offline_the_cache_is_asked_alone(hub: Hub, client: Client, revision: str) -> None:
    client.run(DOWNLOAD, "org/tiny")
    hub.hits.clear()
    assert "digest" in client.bring(f"hf://org/tiny{revision}", HF_HUB_OFFLINE="1")
    assert not hub.hits


def test_offline_without_the_cache_says_so(hub: Hub, client: Client) -> None:
    failed = client.bring("hf://org/tiny", HF_HUB_OFFLINE="1")
    assert failed["reason"] == "SOURCE_UNAVAILABLE"
    assert "HF_HUB_OFFLINE is set" in failed["message"]
    assert not hub.hits


def test_a_hub_that_is_gone_leaves_the_cache(client: Client) -> None:
    client.run(DOWNLOAD, "org/tiny")
    client.endpoint = "http://127.0.0.1:9"
    assert "digest" in client.bring("hf://org/tiny")
    failed = client.bring("hf://org/other", "b")
    assert failed["reason"] == "SOURCE_UNAVAILABLE"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("hf://org/nothing", "not on the hub, or is private"),
        ("hf://org/tiny@nothing", "no such revision"),
    ],
)
def test_what_is_not_there_is_not_found(client: Client, url: str, says: str) -> None:
    failed = client.bring(url)
    assert failed["reason"] == "SOURCE_NOT_FOUND"
    assert says in failed["message"]


def test_a_private_repository_opens_to_its_token(tmp_path: Path) -> None:
    with Hub(write_model(tmp_path / "repository"), private=True) as hub:
        client = Client(tmp_path, hub.url)
        assert client.bring("hf://org/tiny")["reason"] == "SOURCE_NOT_FOUND"
        assert "digest" in client.bring("hf://org/tiny", "b", HF_TOKEN=TOKEN)
