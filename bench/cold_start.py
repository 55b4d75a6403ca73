"""Time to first token: cold from SSD, cold from DRAM, warm, beside a fresh transformers process.

    make bench BENCH='--rounds 7 --json FILE'

One node, one model at a time; in every round each way is taken once, in turn, so that a machine
that drifts drifts for all of them.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import grpc
import typer
from make_models import make_model
from serverlessllm.v1 import node_service_pb2 as node_pb
from serverlessllm.v1 import types_pb2 as types_pb
from serverlessllm.v1.node_service_pb2_grpc import NodeServiceStub

import sllm
from bench.disk import direct_read_seconds, drop_from_page_cache
from bench.local_cluster import GIB, LocalCluster, local_cluster
from bench.report import print_table, spread, write_figures

EXAMPLES = Path(__file__).parent.parent / "examples"
FRESH = Path(__file__).parent / "fresh_process.py"
PROMPT = "The for statement is used to iterate over the elements of a sequence"
IDLE_SECONDS = 60.0
"""Time that instances have to end; they stay for no longer than their requests."""
WARM_REQUESTS = 5
"""Warm requests in a round: they are short, and many make the median firm."""


@dataclass(slots=True)
class Times:
    """Seconds to the first token, one entry for every time it was measured."""

    ssd: list[float] = field(default_factory=list)
    ssd_read: list[float] = field(default_factory=list)
    """What reading the same bytes with O_DIRECT takes in the same round."""
    dram: list[float] = field(default_factory=list)
    dram_attach: list[float] = field(default_factory=list)
    """Mapping and module, of the cold starts from DRAM."""
    warm: list[float] = field(default_factory=list)
    engine: list[float] = field(default_factory=list)
    """Of the same requests, by the worker's own clock: from its taking one to its first token."""
    fresh_cold: list[float] = field(default_factory=list)
    """A fresh process, its files not in the page cache."""
    fresh_cached: list[float] = field(default_factory=list)
    """A fresh process, its files in the page cache."""
    receipts: dict[str, sllm.Receipt] = field(default_factory=dict)
    """The last receipt of each way."""


class Bench:
    """One model on a cluster of one node."""

    def __init__(self, cluster: LocalCluster, source: Path, name: str) -> None:
        self._cluster = cluster
        self._client = cluster.client
        self._source = source
        self._name = name
        self._times = Times()

    def run(self, rounds: int) -> Times:
        """Deploys, takes every way once without counting it, then measures."""
        self._client.deploy(self._name, f"file://{self._source}", keep_alive=0.0)
        self._round()
        self._times = Times()
        for _ in range(rounds):
            self._round()
        self._client.delete(self._name)
        return self._times

    def _round(self) -> None:
        self._measure_fresh()
        self._measure_ssd()
        self._measure_dram()
        self._measure_warm()

    def _measure_fresh(self) -> None:
        drop_from_page_cache(self._source.glob("*.safetensors"))
        self._times.fresh_cold.append(_seconds(self._fresh))
        self._times.fresh_cached.append(_seconds(self._fresh))

    def _fresh(self) -> None:
        command = [sys.executable, str(FRESH), str(self._source), PROMPT]
        subprocess.run(command, check=True, capture_output=True)

    def _measure_ssd(self) -> None:
        partitions = list(self._cluster.checkpoints.glob("*/partition-*.bin"))
        drop_from_page_cache(partitions)
        # The better of two: the first fills the disk's own cache, which the load after it has too.
        self._times.ssd_read.append(min(direct_read_seconds(partitions) for _ in range(2)))
        self._evict()
        self._times.ssd.append(self._first_token("ssd"))

    def _measure_dram(self) -> None:
        self._wait_until_idle()
        self._times.dram.append(self._first_token("dram"))
        phases = self._times.receipts["dram"].phases
        self._times.dram_attach.append(sum(p.duration for p in phases if p.kind == "ATTACH"))

    def _measure_warm(self) -> None:
        with self._kept_warm():
            for _ in range(WARM_REQUESTS):
                self._times.warm.append(self._first_token("warm"))
                phases = self._times.receipts["warm"].phases
                self._times.engine.append(sum(p.duration for p in phases if p.kind == "PREFILL"))

    @contextmanager
    def _kept_warm(self) -> Iterator[None]:
        self._client.deploy(self._name, f"file://{self._source}", keep_alive=600.0)
        self._first_token("before")
        yield
        self._client.deploy(self._name, f"file://{self._source}", keep_alive=0.0)
        self._wait_until_idle()

    def _first_token(self, way: str) -> float:
        """Seconds from the call to the first token, as a caller sees it."""
        began = time.perf_counter()
        stream = self._client.generate(self._name, PROMPT, max_tokens=1, temperature=0.0)
        for event in stream:
            if isinstance(event, sllm.Tokens):
                seconds = time.perf_counter() - began
        self._times.receipts[way] = stream.result().receipt
        return seconds

    def _evict(self) -> None:
        """Takes the weights out of DRAM."""
        self._wait_until_idle()
        with grpc.insecure_channel(self._cluster.node_address) as channel:
            node = NodeServiceStub(channel)
            for digest in self._cluster.digests_in_dram():
                node.Evict(node_pb.EvictRequest(digest=digest, tier=types_pb.TIER_DRAM), timeout=10)

    def _wait_until_idle(self) -> None:
        deadline = time.monotonic() + IDLE_SECONDS
        while self._client.instances():
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"an instance is there {IDLE_SECONDS:g} s after its last request"
                )
            time.sleep(0.02)


def _seconds(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _rows(name: str, times: Times) -> list[list[str]]:
    fresh = statistics.median(times.fresh_cached)
    ways = {
        "cold from SSD": times.ssd,
        "cold from DRAM": times.dram,
        "warm": times.warm,
        "fresh process, files cached": times.fresh_cached,
        "fresh process, files on disk": times.fresh_cold,
    }
    return [
        [name, way, spread(seconds), f"{fresh / statistics.median(seconds):.1f}"]
        for way, seconds in ways.items()
    ]


def _receipt_rows(times: Times) -> list[list[str]]:
    return [
        [way, phase.kind, f"{phase.start * 1000:.1f}", f"{phase.duration * 1000:.1f}"]
        for way in ("ssd", "dram", "warm")
        for phase in times.receipts[way].phases
    ]


def _figures(times: Times) -> dict[str, float]:
    pairs_ssd = zip(times.ssd, times.ssd_read, strict=True)
    pairs_warm = zip(times.warm, times.engine, strict=True)
    return {
        "dram_speedup_over_fresh_process": statistics.median(times.fresh_cached)
        / statistics.median(times.dram),
        "dram_attach_seconds": statistics.median(times.dram_attach),
        "ssd_overhead_seconds": statistics.median(total - read for total, read in pairs_ssd),
        "warm_overhead_seconds": statistics.median(total - own for total, own in pairs_warm),
    }


def main(
    rounds: Annotated[int, typer.Option(help="Times that every way is measured.")] = 7,
    json: Annotated[Path | None, typer.Option(help="Write the main figures here.")] = None,
) -> None:
    """Measures the demo model and one of the 0.5B shape; the figures are the latter's."""
    with tempfile.TemporaryDirectory(prefix="sllm-bench-") as scratch:
        half_b = make_model("qwen2-0.5b", Path(scratch) / "half-b")
        sources = {"demo": EXAMPLES / "tiny-llama", "0.5B": half_b}
        results: dict[str, Times] = {}
        for name, source in sources.items():
            directory = Path(scratch) / f"cluster-{name}"
            directory.mkdir()
            with local_cluster(directory, dram_bytes=3 * GIB, kv_bytes=GIB) as cluster:
                results[name] = Bench(cluster, source, "model").run(rounds)
    for name, times in results.items():
        columns = ["model", "way", "first token, ms", "times sooner than fresh, cached"]
        print_table(f"Time to first token, {name}, {rounds} rounds", columns, _rows(name, times))
    half = results["0.5B"]
    print_table("0.5B: receipts", ["way", "phase", "start, ms", "ms"], _receipt_rows(half))
    figures = _figures(half)
    print_table("0.5B: figures", ["figure", "value"], [[k, f"{v:.4f}"] for k, v in figures.items()])
    write_figures(json, figures)


if __name__ == "__main__":
    typer.run(main)
