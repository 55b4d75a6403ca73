"""Servers of the last release beside those of this tree, as during an upgrade.

The last release is the newest tag; while there is none, a commit of some time ago stands for it. Or
it is what SLLM_LAST_RELEASE names of this repository's history:

    SLLM_LAST_RELEASE=COMMIT pytest -m nightly tests/e2e/test_mixed_versions.py
"""

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from make_models import make_model

import sllm
from tests.e2e.cluster import START_TIMEOUT
from tests.processes import started
from tests.support import wait_until

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
BEFORE_THE_FIRST = "f1b456d27b7bb10e0e98d07fc8e405287a7be030"
"""The first one that passes over what later nodes tell of tiers that are unknown to it."""
SMALL = ("--dram=512MiB", "--ssd=1GiB", "--kv=512MiB", "--engines=transformers")


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree of the last release."""
    named = os.environ.get("SLLM_LAST_RELEASE") or git("describe", "--tags", "--abbrev=0")
    name = git("rev-parse", "--verify", "--quiet", f"{named or BEFORE_THE_FIRST}^{{commit}}")
    if not name:
        pytest.skip("what stands for the last release is not in this clone's history")
    tree = tmp_path_factory.mktemp("release")
    archive = subprocess.run(
        ["git", "archive", name, "sllm", "gen"], cwd=ROOT, capture_output=True, check=True
    )
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as packed:
        packed.extractall(tree, filter="data")
    return tree


def git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


class Cluster:
    """Servers of either tree, each started when it is asked for."""

    def __init__(self, stack: ExitStack, directory: Path) -> None:
        self._stack = stack
        self._directory = directory
        self.address = ""
        self._nodes: set[str] = set()

    def control(self, tree: Path) -> sllm.Client:
        self.address = self._start("control", tree, "control")
        return self._stack.enter_context(sllm.Client(self.address))

    def node(self, name: str, tree: Path, client: sllm.Client) -> None:
        self._start(name, tree, "node", f"--control={self.address}", f"--id={name}", *SMALL)
        self._nodes.add(name)
        wait_until(lambda: {one.node_id for one in client.nodes()} == self._nodes, START_TIMEOUT)

    def _start(self, name: str, tree: Path, *arguments: str) -> str:
        command = [sys.executable, "-m", "sllm.cli.main", *arguments, "--listen=127.0.0.1:0"]
        log = self._stack.enter_context((self._directory / f"{name}.log").open("a"))
        environment = {**os.environ, "PYTHONPATH": f"{tree}{os.pathsep}{tree / 'gen'}"}
        server = started(
            [*command, f"--dir={self._directory / name}"], env=environment, cwd=tree, stderr=log
        )
        process = self._stack.enter_context(server)
        assert process.stdout
        line = process.stdout.readline()
        assert line.startswith("listening on "), (self._directory / f"{name}.log").read_text()
        return line.removeprefix("listening on ").strip()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with ExitStack() as stack:
        yield Cluster(stack, tmp_path)


def text_of(client: sllm.Client) -> str:
    return client.complete("tiny", "The for statement", max_tokens=24, temperature=0.0).text


@pytest.mark.parametrize("newer", ["control", "node"])
def test_a_node_and_a_control_plane_of_two_releases_serve(
    cluster: Cluster, release: Path, tmp_path: Path, newer: str
) -> None:
    model = make_model("tiny-llama", tmp_path / "model")
    client = cluster.control(ROOT if newer == "control" else release)
    cluster.node("one", ROOT if newer == "node" else release, client)
    client.deploy("tiny", model, kv_cache_tokens=128)
    first = text_of(client)
    assert first
    assert text_of(client) == first
    client.delete("tiny")


def test_an_old_node_is_emptied_into_a_new_one(
    cluster: Cluster, release: Path, tmp_path: Path
) -> None:
    """What it runs goes on at the new one from the token that it was at."""
    model = make_model("small-llama", tmp_path / "model")
    client = cluster.control(ROOT)
    cluster.node("old", release, client)
    client.deploy("tiny", model, kv_cache_tokens=4096)
    asked: dict[str, Any] = {"max_tokens": 500, "temperature": 0.0, "ignore_eos": True}
    alone = client.complete("tiny", "The for statement", **asked)
    cluster.node("new", ROOT, client)
    with ExitStack() as stack:  # many, so that it takes a while
        begun = [client.generate("tiny", "The for statement", **asked) for _ in range(6)]
        streams = [stack.enter_context(one) for one in begun]
        first = [next(iter(one)) for one in streams]
        assert len(first) == len(streams)
        client.drain("old", timeout=120)
        events = [event for stream in streams for event in stream]
        results = [stream.result() for stream in streams]
    assert {result.text for result in results} == {alone.text}
    assert [one for one in events if isinstance(one, sllm.Migrated)]
