"""An etcd whose quota is used up: nothing can be changed, and everything else goes on."""

import json
import os
import shutil
import subprocess
import time
from contextlib import closing
from pathlib import Path

import pytest

import sllm
from sllm import errors
from sllm.control.config import EtcdConfig
from sllm.control.etcd.client import Etcd
from sllm.control.etcd.keys import Put
from tests.control.fake_node import FakeNode
from tests.control.replicas.replicas import replicas_of
from tests.etcd import EtcdServer, running_etcd
from tests.support import assert_eventually

QUOTA = 4 * 1024**2
PIECE = 256 * 1024
SECONDS = 30.0


def fill(config: EtcdConfig) -> errors.StateUnavailable:
    """Writes history until etcd takes no more, which it counts every 0.1 s; what it says then."""
    until = time.monotonic() + SECONDS
    with closing(Etcd(config)) as etcd:
        while time.monotonic() < until:
            try:
                etcd.commit([], [Put("piece", b"x" * PIECE)])
            except errors.StateUnavailable as error:
                return error
    pytest.fail("etcd takes more than its quota")


def make_room(server: EtcdServer) -> None:
    """What docs/OPERATING.md has its operator do."""
    etcdctl = ["etcdctl", f"--endpoints={server.endpoint}"]
    environment = {**os.environ, "ETCDCTL_API": "3"}

    def asked(*arguments: str) -> str:
        done = subprocess.run(
            [*etcdctl, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=True,
        )
        return done.stdout

    (status,) = json.loads(asked("endpoint", "status", "--write-out=json"))
    asked("compact", str(status["Status"]["header"]["revision"]))
    asked("defrag")
    asked("alarm", "disarm")


@pytest.mark.skipif(not shutil.which("etcdctl"), reason="etcdctl: `apt-get install etcd-client`")
async def test_without_room_nothing_changes_and_what_runs_goes_on(tmp_path: Path) -> None:
    with running_etcd(f"--quota-backend-bytes={QUOTA}") as server:
        config = server.config()
        async with replicas_of(tmp_path, config) as pair:
            leader, follower = await pair.leader(), await pair.follower()
            node = FakeNode("n1")
            await node.start(leader.address)
            try:
                async with sllm.AsyncClient(follower.address) as client:
                    await assert_eventually(client.nodes)
                    await client.deploy("tiny", "file:///models/tiny")
                    assert fill(config).metadata == {"alarm": "NOSPACE"}
                    assert (await client.complete("tiny", "hello")).text
                    for change in (
                        client.deploy("other", "file:///models/other"),
                        client.delete("tiny"),
                    ):
                        with pytest.raises(errors.StateUnavailable, match="no deletion") as caught:
                            await change
                        assert caught.value.metadata["alarm"] == "NOSPACE"
                    assert [one.name for one in await client.deployments()] == ["tiny"]
                    assert (await client.complete("tiny", "hello")).text
                    assert await pair.leader() is leader
                    make_room(server)
                    await client.delete("tiny")
                    assert await client.deployments() == []
            finally:
                await node.die()
