"""Machines that are network namespaces, each on a link of bounded rate to one switch.

Takes root, and iproute2's ip and tc. All of it is gone with the context.
"""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

_BURST = "256kb"
_LATENCY = "400ms"
"""How long packets may wait in a link's queue."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A namespace."""

    name: str
    address: str
    switch: str
    """Namespace of the switch that it is plugged into."""
    port: str

    def command(self, *command: str) -> Sequence[str]:
        """A command that runs there."""
        return ("ip", "netns", "exec", self.name, *command)

    def limit(self, *, up: float, down: float) -> None:
        """Bounds the megabits per second that it sends, and those that it gets."""
        _run(f"ip netns exec {self.name} tc qdisc replace dev eth0 root {_shape(up)}")
        _run(f"ip netns exec {self.switch} tc qdisc replace dev {self.port} root {_shape(down)}")


@contextmanager
def network(tag: str, count: int, megabits: float) -> Iterator[list[Machine]]:
    """So many machines, each of which sends and gets so many megabits per second at most.

    `tag` begins the names of what is made, to tell it from that of others.
    """
    switch = f"{tag}-sw"
    machines = [Machine(f"{tag}{n}", f"10.97.0.{n + 1}", switch, f"p{n}") for n in range(count)]
    try:
        _run(f"ip netns add {switch}")
        _run(f"ip -n {switch} link add br0 type bridge")
        _run(f"ip -n {switch} link set br0 up")
        for machine in machines:
            _plug_in(machine)
            machine.limit(up=megabits, down=megabits)
        yield machines
    finally:
        for name in (*(machine.name for machine in machines), switch):
            _run(f"ip netns del {name}", check=False)


def _plug_in(machine: Machine) -> None:
    name, switch, port = machine.name, machine.switch, machine.port
    _run(f"ip netns add {name}")
    _run(f"ip link add eth0 netns {name} type veth peer name {port} netns {switch}")
    _run(f"ip -n {switch} link set {port} master br0 up")
    _run(f"ip -n {name} addr add {machine.address}/24 dev eth0")
    _run(f"ip -n {name} link set eth0 up")
    _run(f"ip -n {name} link set lo up")


def _shape(megabits: float) -> str:
    return f"tbf rate {megabits}mbit burst {_BURST} latency {_LATENCY}"


def _run(command: str, *, check: bool = True) -> None:
    subprocess.run(command.split(), check=check, capture_output=True, timeout=30)
