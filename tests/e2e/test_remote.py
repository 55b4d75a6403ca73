"""Models that lie elsewhere, on a real cluster."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from sllm.errors import SourceForbidden, SourceNotFound
from tests.checkpoint.remote.web import WebServer
from tests.disks import SmallDisk, small_disk_if_possible
from tests.e2e.cluster import Cluster, running
from tests.e2e.reference import greedy
from tests.s3 import BUCKET, serving

PROMPT = "The for statement"


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket, and the environment in which AWS's own tools find it."""
    with serving("secret") as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield BUCKET


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cluster's."""
    return tmp_path_factory.mktemp("cluster")


@pytest.fixture(scope="module")
def disk(directory: Path) -> Iterator[SmallDisk | None]:
    """The node's, where one can be had."""
    with small_disk_if_possible(directory / "node-0", 1 << 30) as disk:
        yield disk


@pytest.fixture(scope="module")
def remote_cluster(bucket: str, directory: Path, disk: SmallDisk | None) -> Iterator[Cluster]:
    """One node that may read the bucket, and web servers of this machine."""
    with running(directory, nodes=1, node_options=("--allow-private-sources",)) as cluster:
        yield cluster


def upload(directory: Path, bucket: str, prefix: str) -> str:
    client = boto3.client("s3")
    for path in directory.iterdir():
        client.upload_file(str(path), bucket, f"{prefix}/{path.name}")
    return f"s3://{bucket}/{prefix}"


def sllm(cluster: Cluster, *arguments: str) -> str:
    command = [sys.executable, "-m", "sllm.cli.main", *arguments]
    command += ["--control", cluster.control.address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("family", ["tiny-llama", "tiny-llama-sharded"])
def test_a_model_in_s3_is_deployed_and_generates(
    remote_cluster: Cluster, models: Path, bucket: str, family: str
) -> None:
    url = upload(models / family, bucket, family)
    sllm(remote_cluster, "deploy", family, url)
    text = sllm(remote_cluster, "generate", family, PROMPT, "--max-tokens", "8", "--temperature=0")
    assert text.strip() == greedy(models / family, PROMPT, 8).text.strip()
    (node,) = remote_cluster.client.nodes()
    assert {copy.tier for copy in node.copies if url in copy.sources} == {"SSD", "DRAM"}
    sllm(remote_cluster, "rm", family)


def test_a_full_disk_keeps_nobody_from_being_served(
    remote_cluster: Cluster, models: Path, bucket: str, disk: SmallDisk | None
) -> None:
    if disk is None:
        pytest.skip("this user may not mount a file system")
    client = remote_cluster.client
    url = upload(models / "tiny-qwen2", bucket, "qwen2")
    disk.fill()
    client.deploy("full", url)
    assert client.deployment("full").state == "AVAILABLE", "it is served from memory"
    generated = client.generate("full", PROMPT, max_tokens=8, temperature=0.0).result()
    assert generated.text == greedy(models / "tiny-qwen2", PROMPT, 8).text
    (node,) = client.nodes()
    assert [copy.tier for copy in node.copies if url in copy.sources] == ["DRAM"]
    assert "is full" in sllm(remote_cluster, "nodes")
    client.delete("full")
    disk.empty()
    client.deploy("roomy", upload(models / "tiny-gpt2", bucket, "gpt2"))
    assert client.deployment("roomy").state == "AVAILABLE"
    assert "is full" not in sllm(remote_cluster, "nodes")
    client.delete("roomy")


def test_a_model_on_the_web_is_the_same_model(
    remote_cluster: Cluster, models: Path, bucket: str
) -> None:
    client = remote_cluster.client
    in_s3 = upload(models / "tiny-opt", bucket, "opt")
    client.deploy("from-s3", in_s3)
    with WebServer(models) as server:
        on_web = f"{server.url}/tiny-opt"
        client.deploy("from-web", on_web)
        with pytest.raises(SourceNotFound, match="none of the files of a model"):
            client.deploy("from-nowhere", f"{server.url}/nothing")
    (node,) = client.nodes()
    sources = [set(copy.sources) for copy in node.copies if copy.tier == "SSD"]
    assert {in_s3, on_web} in sources
    client.delete("from-s3")
    client.delete("from-web")


def test_what_may_not_be_read_says_so(remote_cluster: Cluster, tmp_path: Path) -> None:
    from aiohttp import web

    with WebServer(tmp_path) as server:

        async def refuse(*_: object) -> web.StreamResponse:
            return web.Response(status=403)

        server.fault = refuse
        with pytest.raises(SourceForbidden, match="credentials"):
            remote_cluster.client.deploy("secret", f"{server.url}/model")
