"""What certificates cost: tokens relayed with TLS and keys beside those without.

    PYTHONPATH=examples python -m bench.tls --json FILE

Two clusters of one node run side by side, one with certificates on every connection between caller,
control plane and node, and a key with each call. Each round asks both in turn, and each pair gives
a ratio: whatever else the machine does then is in both. The time of processors that control plane
and node take for a token is told as well, which other programs leave as it is.
"""

import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import psutil
import typer

import sllm
from bench.local_cluster import DEFAULT_ENGINE, LocalCluster
from bench.report import print_table, spread, write_figures
from sllm.tls.authority import issue, make_authority
from sllm.tls.identity import DEFAULT_CLUSTER, Role, name_of

MODEL = Path(__file__).parent.parent / "examples" / "tiny-llama"
STREAMS = 32
TOKENS = 128
PROMPT = "The for statement"


@dataclass(frozen=True, slots=True)
class Served:
    """A cluster of one node."""

    control: psutil.Process
    node: psutil.Process
    cluster: LocalCluster
    key: str
    """Of its callers. Empty: nobody is asked."""
    authority: str
    """Of its certificates. Empty: it has none."""

    def client(self) -> sllm.AsyncClient:
        """One of its callers."""
        return sllm.AsyncClient(self.cluster.address, api_key=self.key, tls_ca=self.authority)

    def processor_seconds(self) -> float:
        """What control plane and node agent have taken of processors."""
        return sum(sum(one.cpu_times()[:2]) for one in (self.control, self.node))


@dataclass(slots=True)
class Found:
    """Of one of the two: a value for each round."""

    rates: list[float] = field(default_factory=list)
    """Tokens per second of all streams."""
    costs: list[float] = field(default_factory=list)
    """Seconds of processors for 1,000 tokens, at control plane and node agent."""


@contextmanager
def started(arguments: Sequence[str], log: Path) -> Iterator[tuple[psutil.Process, dict[str, str]]]:
    """A server, and the addresses that it says: "peers" and "listening"."""
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "sllm.cli.main", *arguments],
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
        )
    try:
        said: dict[str, str] = {}
        for line in process.stdout or ():
            word, _, address = line.strip().partition(" on ")
            said[word] = address
            if word == "listening":
                break
        yield psutil.Process(process.pid), said
    finally:
        process.terminate()
        process.wait(60.0)
        if process.stdout:
            process.stdout.close()


@contextmanager
def served(directory: Path, engine: str, certificates: dict[Role, Path] | None) -> Iterator[Served]:
    """A control plane and a node, with certificates or without."""
    directory.mkdir()
    own = {role: ["--tls", str(path)] for role, path in (certificates or {}).items()}
    sizes = ("--dram=256MiB", "--ssd=1GiB", "--kv=512MiB", f"--engines={engine}")
    with ExitStack() as stack:
        arguments = ["control", "--listen=127.0.0.1:0", "--dir", str(directory / "control")]
        arguments += own.get(Role.CONTROL, [])
        control, said = stack.enter_context(started(arguments, directory / "control.log"))
        to_control = ["--control", said.get("peers", said["listening"])]
        arguments = ["node", *to_control, "--dir", str(directory / "node"), *sizes]
        arguments += own.get(Role.NODE, [])
        node, _ = stack.enter_context(started(arguments, directory / "node.log"))
        key = authority = ""
        if certificates:
            key = (directory / "control" / "admin-key").read_text().strip()
            authority = str(certificates[Role.CONTROL] / "ca.crt")
        address = said["listening"]
        client = stack.enter_context(sllm.Client(address, api_key=key, tls_ca=authority))
        cluster = LocalCluster(client, directory, address, control)
        yield Served(control, node, cluster, key, authority)


def certificates_in(directory: Path) -> dict[Role, Path]:
    """Those of a control plane and a node."""
    make_authority(directory, 30)
    made = {}
    for role in (Role.CONTROL, Role.NODE):
        names = [name_of(role, DEFAULT_CLUSTER), "127.0.0.1"]
        made[role] = issue(directory, names, directory / role, 30).directory
    return made


async def measure(clusters: Sequence[Served], rounds: int) -> list[Found]:
    """All of them in turns."""
    found = [Found() for _ in clusters]
    clients = [one.client() for one in clusters]
    for client in clients:
        await client.deploy("tiny", MODEL, keep_alive=3600.0, max_concurrency=STREAMS)
        await _generate(client)
    for _ in range(rounds):
        for one, client, into in zip(clusters, clients, found, strict=True):
            before, began = one.processor_seconds(), time.perf_counter()
            tokens = await _generate(client)
            into.rates.append(tokens / (time.perf_counter() - began))
            into.costs.append(1_000 * (one.processor_seconds() - before) / tokens)
    for client in clients:
        await client.close()
    return found


async def _generate(client: sllm.AsyncClient) -> int:
    """So many streams at once; gives the tokens that came."""
    calls = [
        client.complete("tiny", PROMPT, max_tokens=TOKENS, ignore_eos=True) for _ in range(STREAMS)
    ]
    return sum(one.usage.completion_tokens for one in await asyncio.gather(*calls))


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of all streams.")] = 15,
    engine: Annotated[str, typer.Option(help="That nodes have.")] = DEFAULT_ENGINE,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write figures here.")] = None,
) -> None:
    """Measure, and print a table."""
    with tempfile.TemporaryDirectory(prefix="sllm-tls-") as name, ExitStack() as stack:
        directory = Path(name)
        made = certificates_in(directory / "ca")
        clear = stack.enter_context(served(directory / "clear", engine, None))
        secured = stack.enter_context(served(directory / "tls", engine, made))
        for one in (clear, secured):
            one.cluster.wait_for_engines(1)
        without, with_tls = asyncio.run(measure([clear, secured], rounds))
    ratio = _ratio(with_tls.rates, without.rates)
    cost = _ratio(with_tls.costs, without.costs)
    rows = [
        [f"tokens/s of {STREAMS}: in the clear", spread(without.rates, "")],
        [f"tokens/s of {STREAMS}: TLS and keys", spread(with_tls.rates, "")],
        ["TLS over clear", f"{ratio:.3f}"],
        ["processor ms per 1,000 tokens: in the clear", spread(without.costs)],
        ["processor ms per 1,000 tokens: TLS and keys", spread(with_tls.costs)],
        ["TLS over clear", f"{cost:.3f}"],
    ]
    print_table(f"What certificates cost ({engine})", ["", "median (least - most)"], rows)
    write_figures(json_path, {"tokens_ratio_tls": ratio, "processor_ratio_tls": cost})


def _ratio(these: Sequence[float], those: Sequence[float]) -> float:
    """The median over the rounds' pairs."""
    return statistics.median(one / other for one, other in zip(these, those, strict=True))


if __name__ == "__main__":
    typer.run(main)
