"""What `sllm up` brings up: the command line of each server."""

import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sllm import machine
from sllm.cli.gateway import HTTP_PORT
from sllm.cli.guards import Guards
from sllm.cli.sizes import GIB
from sllm.cli.supervisor import Command

CONTROL_BYTES: Final = 128 * 1024**2
"""What the control plane (46 MiB, and more with requests) and `sllm up` itself (36 MiB) take."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What `sllm up` brings up."""

    directory: Path
    """Where all servers keep their files and logs."""
    nodes: int
    """How many nodes."""
    port: int
    """Port of the control plane; 0 takes any that is free."""
    dram_bytes: int | None
    """Each node's memory for weights. None: 1 GiB, or a quarter of what it may take altogether."""
    ssd_bytes: int
    """Each node's disk for checkpoints."""
    kv_bytes: int | None
    """Each node's memory for KV caches."""
    metrics_port: int | None
    """Prometheus port of the control plane; the nodes have those after it. 0: any, for all."""
    migrate: bool = True
    """Whether running instances are migrated away where that makes room sooner."""
    lend_layers: bool = False
    """Whether idle nodes compute layers for one that still reads their weights."""
    memory_bytes: int = field(default_factory=machine.memory_bytes)
    """What all of them may take together."""
    kv_cache_dram_bytes: int = 0
    """Of each node's memory for weights, for KV caches that are kept."""
    kv_cache_ssd_bytes: int = 0
    """The same of its disk."""
    kv_cache_int8: bool = False
    """Whether they are kept with eight bits a number."""
    engines: str | None = None
    """What models run on at each node, the preferred one first. None: what is installed."""
    ready_made: bool = True
    """Whether nodes keep weights as their engines read them."""
    peers: bool = True
    """Whether nodes get weights from one another."""
    early_starts: bool = True
    """Whether instances take requests before all of their weights are in memory."""
    huge_pages: bool = True
    """Whether nodes keep weights in huge pages where the kernel gives them."""
    sources: Path | None = None
    """The list of sources that may be read. None: all may."""
    private_sources: bool = False
    """Whether web servers at private addresses may be fetched from."""
    http: bool = True
    """Whether there is an HTTP gateway."""
    http_port: int | None = None
    """Its port. None: 8000 or, if that is taken, another; the cluster is up without it as well."""

    guards: Guards | None = None
    """What its callers have to show, and its processes have. None: nothing."""

    def control(self) -> Command:
        """The control plane."""
        switches = {"--no-migrate": self.migrate, "--no-peers": self.peers}
        off = [name for name, is_on in switches.items() if not is_on]
        off += ["--lend-layers"] * self.lend_layers
        guards = self.guards.of_control() if self.guards else ()
        return Command(
            name="control",
            arguments=("control", *off, *guards, *self._common("control", 0)),
            listen=f"127.0.0.1:{self.port}",
            log=self._log("control"),
            keeps_address=True,
        )

    def gateway(self, control_address: str) -> Command:
        """The HTTP gateway."""
        port = self.http_port
        if port is None:
            port = HTTP_PORT if _is_free(HTTP_PORT) else 0
        common = (*self._common("gateway", 0)[:2], *self._guarded("gateway"))
        return Command(
            name="gateway",
            arguments=("gateway", "--control", control_address, *common),
            listen=f"127.0.0.1:{port}",
            log=self._log("gateway"),
            keeps_address=True,
        )

    def node(self, number: int, control_address: str) -> Command:
        """The node of this number, counted from 1."""
        name = f"node-{number}"
        memory = (self.memory_bytes - CONTROL_BYTES) // self.nodes
        dram = min(GIB, memory // 4) if self.dram_bytes is None else self.dram_bytes
        options = {
            "memory": memory,
            "dram": dram,
            "ssd": self.ssd_bytes,
            "kv": self.kv_bytes,
            "kv-cache-dram": self.kv_cache_dram_bytes or None,
            "kv-cache-ssd": self.kv_cache_ssd_bytes or None,
            "engines": self.engines,
            "sources": self.sources and self.sources.absolute(),
        }
        given = [f"--{name}={value}" for name, value in options.items() if value is not None]
        switches = {
            "--no-ready-made": self.ready_made,
            "--no-early-start": self.early_starts,
            "--no-peers": self.peers,
            "--no-huge-pages": self.huge_pages,
            "--kv-cache-int8": not self.kv_cache_int8,
        }
        given += [name for name, is_on in switches.items() if not is_on]
        if self.private_sources:
            given.append("--allow-private-sources")
        given += self._guarded("node")
        arguments = ("node", "--control", control_address, "--id", name, *given)
        return Command(
            name=name,
            arguments=(*arguments, *self._common(name, number)),
            listen="127.0.0.1:0",
            log=self._log(name),
        )

    def _guarded(self, role: str) -> tuple[str, ...]:
        return self.guards.of(role) if self.guards else ()

    def _common(self, name: str, number: int) -> tuple[str, ...]:
        directory = ("--dir", str(self.directory / name))
        if self.metrics_port is None:
            return directory
        port = self.metrics_port + number if self.metrics_port else 0
        return (*directory, "--metrics-port", str(port))

    def _log(self, name: str) -> Path:
        return self.directory / "logs" / f"{name}.log"


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers bind
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
