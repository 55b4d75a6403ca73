"""Three control planes on an etcd of three members, and two nodes."""

import itertools
import signal
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.chaos.networks import Namespaces, Network, network
from bench.chaos.servers import Server, skewed
from sllm.control.config import EtcdConfig
from sllm.control.election.ballot import Ballot
from sllm.control.etcd.client import Etcd

NODES: Final = 2
MEMBERS: Final = 3
CONTROLS: Final = 3
SKEWS: Final = ("+5s", "-5s", "+0s")
_SLLM: Final = (sys.executable, "-m", "sllm.cli.main")


@dataclass
class Planes:
    """The parts, and where they are."""

    etcd: EtcdConfig
    members: list[Server]
    controls: dict[str, Server]
    """By address."""
    nodes: list[Server]
    network: Network

    @property
    def addresses(self) -> str:
        """Of all control planes."""
        return ",".join(self.controls)

    def place(self, server: Server) -> int:
        """A control plane's, or a member's, number in the network."""
        return [*self.members, *self.controls.values()].index(server)

    def leader(self) -> Server | None:
        """Whose address etcd has; it may have died meanwhile."""
        with closing(Etcd(self.etcd)) as etcd:
            leader = Ballot(etcd, "", "", 3).look()
        return self.controls.get(leader.address) if leader else None

    def terms(self) -> list[list[int]]:
        """Those that each node has taken orders in, as they came."""
        return [[event["term"] for event in one.events("node.term")] for one in self.nodes]


@contextmanager
def running(directory: Path) -> Iterator[Planes]:
    """All parts, which end with the block, also if this process is asked to end."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with network(MEMBERS + CONTROLS) as there, ExitStack() as stack:

        def started(name: str, command: Sequence[str], env: Mapping[str, str] = {}) -> Server:
            server = Server(name, directory, command, env)
            stack.callback(lambda: server.end(signal.SIGKILL))
            return server

        ports = _free_ports(2 * MEMBERS + CONTROLS)
        clients, peers, serving = (ports[start::3] for start in range(3))
        members = [
            started(f"etcd-{one}", there.within(one, _etcd(one, directory, clients, peers, there)))
            for one in range(MEMBERS)
        ]
        endpoints = tuple(f"{there.host(one)}:{port}" for one, port in enumerate(clients))
        controls: dict[str, Server] = {}
        for number, port in enumerate(serving):
            place = MEMBERS + number
            address = f"{there.host(place)}:{port}"
            command = [*_SLLM, "control", f"--listen={address}", "--insecure"]
            command += [
                f"--dir={directory / f'c{number}'}",
                f"--store=etcd://{','.join(endpoints)}",
            ]
            env = skewed(SKEWS[number % len(SKEWS)])
            controls[address] = started(f"control-{number}", there.within(place, command), env)
        nodes = [
            started(f"node-{one}", _node(one, directory, controls, there)) for one in range(NODES)
        ]
        yield Planes(EtcdConfig(endpoints), members, controls, nodes, there)


def _node(
    number: int, directory: Path, controls: Mapping[str, Server], there: Network
) -> Sequence[str]:
    here = there.here if isinstance(there, Namespaces) else "127.0.0.1"
    return [
        *(*_SLLM, "node", f"--id=n{number}", f"--control={','.join(controls)}"),
        *(f"--listen={here}:0", "--insecure", f"--dir={directory / f'n{number}'}"),
        *("--dram=256MiB", "--kv=256MiB", "--engines=transformers"),
    ]


def _etcd(
    number: int, directory: Path, clients: Sequence[int], peers: Sequence[int], there: Network
) -> Sequence[str]:
    mine = f"http://{there.host(number)}:{clients[number]}"
    own = f"http://{there.host(number)}:{peers[number]}"
    cluster = ",".join(f"m{one}=http://{there.host(one)}:{port}" for one, port in enumerate(peers))
    options = {
        "name": f"m{number}",
        "data-dir": str(directory / f"etcd-{number}"),
        "listen-client-urls": mine,
        "advertise-client-urls": mine,
        "listen-peer-urls": own,
        "initial-advertise-peer-urls": own,
        "initial-cluster": cluster,
        "log-level": "error",
    }
    return ["etcd", *itertools.chain(*((f"--{name}", value) for name, value in options.items()))]


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
