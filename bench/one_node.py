"""A cluster of one node on this machine, for benchmarks."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import sllm

GIB = 1024**3
START_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class LocalCluster:
    """One node, and a client of its control plane."""

    client: sllm.Client
    directory: Path

    @property
    def checkpoints(self) -> Path:
        """The node's SSD tier."""
        return self.directory / "node-1" / "checkpoints"

    @property
    def node_address(self) -> str:
        """host:port of the node agent."""
        return self.client.nodes()[0].address

    def digests_in_dram(self) -> list[str]:
        """The checkpoints that the pool holds."""
        return [copy.digest for copy in self.client.nodes()[0].copies if copy.tier == "DRAM"]


@contextmanager
def local_cluster(directory: Path, *, dram_bytes: int, kv_bytes: int) -> Iterator[LocalCluster]:
    """Runs `sllm up` with one node in `directory`, and ends it afterwards."""
    command = [sys.executable, "-m", "sllm.cli.main", "up", "--nodes", "1", "--port", "0"]
    sizes = ["--dram", str(dram_bytes), "--kv", str(kv_bytes)]
    with (directory / "up.log").open("w") as log:
        up = subprocess.Popen(
            [*command, *sizes, "--dir", str(directory)],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        with sllm.Client(_address(up)) as client:
            yield LocalCluster(client, directory)
    finally:
        up.terminate()
        up.wait(START_SECONDS)
        if up.stdout:
            up.stdout.close()


def _address(up: subprocess.Popen[str]) -> str:
    """The control plane's address, which `sllm up` prints once all nodes are there."""
    for line in up.stdout or ():
        if line.startswith("listening on "):
            return line.removeprefix("listening on ").strip()
    raise RuntimeError("the cluster did not come up; see up.log in its directory")
