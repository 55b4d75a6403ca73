"""A cluster on this machine, for benchmarks: `sllm up`, in processes of its own."""

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

import sllm
from sllm.node.worker.backends import names

MIB = 1024**2
GIB = 1024**3
START_SECONDS = 60.0
ENGINES_SECONDS = 600.0
"""Time that nodes have to import their engines."""
DEFAULT_ENGINE = names.installed()[0]
"""What nodes here prefer."""


@dataclass(frozen=True, slots=True)
class LocalCluster:
    """The running cluster, and a client of its control plane."""

    client: sllm.Client
    directory: Path
    address: str
    """host:port of the control plane."""
    process: psutil.Process
    """`sllm up` itself, which starts a server again when it dies."""

    @property
    def checkpoints(self) -> Path:
        """The first node's SSD tier."""
        return self.directory / "node-1" / "checkpoints"

    @property
    def node_address(self) -> str:
        """host:port of the first node's agent."""
        return self.client.nodes()[0].address

    def wait_for_engines(self, nodes: int) -> None:
        """Returns once so many nodes can start workers without importing anything first.

        Raises:
            TimeoutError: They cannot within minutes.
        """
        until = time.monotonic() + ENGINES_SECONDS
        while not self._ready(nodes):
            if time.monotonic() > until:
                raise TimeoutError("a node's engines did not get ready; see up.log")
            time.sleep(0.2)

    def _ready(self, count: int) -> bool:
        nodes = self.client.nodes()
        return len(nodes) == count and all(one.ready for node in nodes for one in node.engines)

    def digests_in_dram(self) -> list[str]:
        """The checkpoints that the first node's pool holds."""
        return [copy.digest for copy in self.client.nodes()[0].copies if copy.tier == "DRAM"]

    def server(self, name: str) -> psutil.Process:
        """The process that is now the control plane ("control") or a node ("node-1")."""
        word = "control" if name == "control" else "node"
        where = str(self.directory / name)
        servers = (one for one in self.process.children() if where in one.cmdline())
        return next(one for one in servers if word in one.cmdline())


@contextmanager
def local_cluster(
    directory: Path,
    *,
    dram_bytes: int,
    kv_bytes: int,
    nodes: int = 1,
    engines: str = "transformers",
    options: Sequence[str] = (),
    auth: bool = False,
) -> Iterator[LocalCluster]:
    """Runs `sllm up` in `directory`, and ends it afterwards.

    Args:
        directory: for all files of the cluster.
        dram_bytes: pool of each node.
        kv_bytes: memory for KV caches of each node.
        nodes: how many.
        engines: what models run on at each node, the preferred one first.
        options: more of `sllm up`.
        auth: whether callers are asked for a key; the client is the admin's.
    """
    command = [
        sys.executable,
        "-m",
        "sllm.cli.main",
        "up",
        "--no-http",
        "--nodes",
        str(nodes),
        "--port=0",
    ]
    sizes = ["--dram", str(dram_bytes), "--kv", str(kv_bytes), "--engines", engines]
    with (directory / "up.log").open("w") as log:
        up = subprocess.Popen(
            [*command, *sizes, *options, *(["--auth"] * auth), "--dir", str(directory)],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        address = _address(up)
        key = (directory / "admin-key").read_text().strip() if auth else ""
        with sllm.Client(address, api_key=key) as client:
            yield LocalCluster(client, directory, address, psutil.Process(up.pid))
    finally:
        up.terminate()
        try:
            up.wait(START_SECONDS)
        finally:
            up.kill()  # of no effect once it has ended; its servers end with it
            up.wait()
            if up.stdout:
                up.stdout.close()


def _address(up: subprocess.Popen[str]) -> str:
    """The control plane's address, which `sllm up` prints once all nodes are there."""
    for line in up.stdout or ():
        if line.startswith("listening on "):
            return line.removeprefix("listening on ").strip()
    raise RuntimeError("the cluster did not come up; see up.log in its directory")
