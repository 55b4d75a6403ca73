"""A real cluster for tests: a control plane and nodes, each a process of its own, on free ports."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

import sllm
from tests.support import LEFT_BEHIND, held_port, wait_until

START_TIMEOUT = 60.0
STOP_TIMEOUT = 20.0
ZYGOTE_TIMEOUT = 600.0


class Part:
    """One server of the cluster."""

    def __init__(self, name: str, directory: Path, arguments: list[str]) -> None:
        self.name = name
        self._arguments = arguments
        self._log = directory / f"{name}.log"
        self._port = ExitStack()
        self._listen = f"127.0.0.1:{self._port.enter_context(held_port())}"
        self._began_at = 0
        self.address = ""
        """host:port, once it is up."""
        self.peers = ""
        """host:port for nodes and gateways, of a control plane that has certificates."""
        self.process = self._spawn()

    def wait_until_up(self) -> None:
        """Returns once it listens; several parts may come up side by side."""
        self.address = self._read_address()

    def wait_for_zygotes(self, count: int = 1) -> None:
        """Returns once a node's starts take no longer than they will: it imports a lot at first."""

        def ready() -> bool:
            return self.log_text()[self._began_at :].count("zygote.ready") >= count

        wait_until(ready, ZYGOTE_TIMEOUT)

    def _spawn(self) -> subprocess.Popen[str]:
        command = [
            sys.executable,
            "-m",
            "sllm.cli.main",
            *self._arguments,
            "--listen",
            self._listen,
        ]
        with self._log.open("a") as log:
            self._began_at = len(self.log_text())
            return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)

    def _read_address(self) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if line.startswith("peers on "):
            self.peers = line.removeprefix("peers on ").strip()
            line = self.process.stdout.readline()
        assert line.startswith("listening on "), f"{self.name}: {line!r}\n{self.log_text()}"
        return line.removeprefix("listening on ").strip()

    def log_text(self) -> str:
        """What the server has logged."""
        return self._log.read_text()

    def check_log(self) -> None:
        """Fails if the log tells of tasks that nobody waits for."""
        lines = [line for line in self.log_text().splitlines() if LEFT_BEHIND.search(line)]
        assert not lines, f"{self.name}: " + "\n".join(lines)

    def metrics_port(self) -> int:
        """The port of its Prometheus endpoint, as its log has it."""
        # gRPC's own complaints, as of handshakes that fail, are lines of text between ours.
        own = [line for line in self.log_text().splitlines() if line.startswith("{")]
        lines = [json.loads(line) for line in own]
        ports = [one["port"] for one in lines if one["event"] == "telemetry.metrics_served"]
        return int(ports[-1])

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self.process.kill()
        self.reap()

    def restart(self) -> None:
        """Starts it again, on the address that it had."""
        self.process = self._spawn()
        assert self._read_address() == self.address

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.reap()

    def is_running(self) -> bool:
        """Whether its process has not ended."""
        return self.process.poll() is None

    def end(self) -> None:
        """Makes sure that it has ended; it does not start again."""
        if self.process.poll() is None:
            self.kill()
        self._port.close()

    def reap(self) -> int:
        """Waits for its end, which a signal has brought about; returns the exit status."""
        status = self.process.wait(STOP_TIMEOUT)
        assert self.process.stdout
        self.process.stdout.close()
        return status

    def descendants(self) -> list[psutil.Process]:
        """The processes that it has started, and they in turn."""
        return psutil.Process(self.process.pid).children(recursive=True)


@contextmanager
def gateway_of(control: Part, directory: Path) -> Iterator[Part]:
    """A gateway before a control plane, which ends in order."""
    gateway = Part("gateway", directory, ["gateway", "--control", control.address])
    try:
        gateway.wait_until_up()
        yield gateway
        assert gateway.stop() == 0
        gateway.check_log()
    finally:
        gateway.end()


@contextmanager
def running(
    directory: Path,
    *,
    nodes: int = 2,
    dram_mib: int = 256,
    kv_mib: int = 512,
    engines: Sequence[str] = ("transformers",),
    options: Sequence[str] = (),
    control_options: Sequence[str] = (),
    node_options: Sequence[str] = (),
) -> Iterator["Cluster"]:
    """Starts a control plane and nodes; stops them, and checks that nothing is left."""
    with ExitStack() as stack:
        control = Part(
            "control",
            directory,
            ["control", "--dir", str(directory / "control"), *options, *control_options],
        )
        stack.callback(control.end)
        control.wait_until_up()
        sizes = [f"--dram={dram_mib}MiB", "--ssd=2GiB", f"--kv={kv_mib}MiB"]
        sizes.append(f"--engines={','.join(engines)}")
        parts: list[Part] = []
        for index in range(nodes):
            name = f"node-{index}"
            where = ["--control", control.address, "--dir", str(directory / name)]
            parts.append(
                Part(
                    name, directory, ["node", "--id", name, *where, *sizes, *options, *node_options]
                )
            )
            stack.callback(parts[-1].end)
        for part in parts:
            part.wait_until_up()
        client = stack.enter_context(sllm.Client(control.address))
        cluster = Cluster(directory, control, parts, client)
        cluster.wait_for_nodes(nodes)
        for part in parts:
            part.wait_for_zygotes(len(engines))
        yield cluster
        cluster.stop()


@dataclass(frozen=True, slots=True)
class Cluster:
    """The parts, and a client of them."""

    directory: Path
    control: Part
    nodes: list[Part]
    client: sllm.Client

    @property
    def parts(self) -> list[Part]:
        """Every server."""
        return [self.control, *self.nodes]

    def restart_dead(self) -> None:
        """Starts the parts again that have ended, and waits until all of them work together."""
        for part in self.parts:
            if part.process.poll() is not None:
                part.restart()
        self.wait_for_nodes(len(self.nodes))

    def wait_for_nodes(self, count: int) -> None:
        """Returns once the control plane knows `count` nodes."""
        wait_until(lambda: len(self.client.nodes()) == count, START_TIMEOUT)

    def wait_for_instances(self, count: int, deployment: str | None = None) -> None:
        """Returns once there are `count` ready instances, and no others."""

        def settled() -> bool:
            found = [one for one in self.client.instances() if deployment in (None, one.deployment)]
            return len(found) == count and all(one.state == "READY" for one in found)

        wait_until(settled, START_TIMEOUT)

    def signal_worker(self, instance_id: str, number: int) -> None:
        """Sends a signal to an instance's worker, once its node has told which process that is.

        Until then it is told as 0, which to the system is whoever sends the signal.
        """

        def told() -> list[int]:
            found = self.client.instances()
            return [one.worker_pid for one in found if one.instance_id == instance_id]

        wait_until(lambda: any(told()), START_TIMEOUT)
        os.kill(told()[0], number)

    def node_of(self, node_id: str) -> Part:
        """The node agent of this id."""
        return next(node for node in self.nodes if node.name == node_id)

    def stop(self) -> None:
        """Stops everything, and checks that nothing is left."""
        running = [part for part in reversed(self.parts) if part.process.poll() is None]
        left = [child for part in running for child in part.descendants()]
        statuses = {part.name: part.stop() for part in running}
        assert not any(statuses.values()), statuses
        wait_until(lambda: not any(_alive(process) for process in left), STOP_TIMEOUT)
        assert not list(self.directory.glob("node-*/run/*")), "sockets are left"
        for part in self.parts:
            part.check_log()


def _alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def memfds_of(pid: int) -> int:
    """How many memfds a process holds open."""
    links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()]
    return sum(link.startswith("/memfd:") for link in links)
