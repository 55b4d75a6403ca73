"""First tokens while no node has the whole model, beside those of a node that reads it alone.

    make bench-pipeline BENCH='--rounds 5 --rates 100,200,400 --json FILE'

Nodes on this machine, each behind a slow disk of its own (see slow_disk.py), with a model on all of
them. In each round a start from SSD is made alone, all other nodes being drained, and with layers
lent; ratios are within rounds. What a lender sends crosses loopback.
"""

import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated

import grpc
import typer
from make_models import make_model
from serverlessllm.v1 import node_service_pb2 as node_pb
from serverlessllm.v1 import types_pb2 as types_pb
from serverlessllm.v1.node_service_pb2_grpc import NodeServiceStub

from bench.inference.timing import new_prompts
from bench.local_cluster import GIB, LocalCluster, local_cluster
from bench.report import print_table, spread, write_figures
from bench.slow_disk import slow_disk

VOCABULARY = 1024
SECONDS = 600.0
TOKENS = 16


@dataclass(slots=True)
class Way:
    """Starts of one kind; an entry for every round."""

    first_token: list[float] = field(default_factory=list)
    """Seconds from the call to the first token."""
    whole: list[float] = field(default_factory=list)
    """Seconds from the call to the last token of the answer."""
    tokens: list[tuple[int, ...]] = field(default_factory=list)


class Nodes:
    """A cluster that has a model on the disks of all its nodes."""

    def __init__(self, cluster: LocalCluster, source: Path) -> None:
        self._client = cluster.client
        self._ids = [one.node_id for one in self._client.nodes()]
        url = f"file://{source}"
        self._client.deploy("m", url, pack=True, keep_alive=0.0, timeout=SECONDS)
        for node_id in self._ids:  # it runs on each, which learns in which order it uses weights
            self._only(node_id)
            self._client.complete("m", "Once", max_tokens=1, timeout=SECONDS)

    def start(self, way: Way, prompt: list[int], *, alone: bool) -> None:
        """One start from SSD."""
        self._only(self._ids[0] if alone else None)
        self._make_cold()
        began = time.monotonic()
        result = self._client.complete(
            "m", prompt_token_ids=prompt, max_tokens=TOKENS, temperature=0.0, timeout=SECONDS
        )
        way.whole.append(time.monotonic() - began)
        way.first_token.append(result.receipt.time_to_first_token)
        way.tokens.append(tuple(result.token_ids))

    def _only(self, node_id: str | None) -> None:
        """Gives work to one node alone. None: to all."""
        for one in self._ids:
            if node_id in (None, one):
                self._client.undrain(one)
            else:
                self._client.drain(one, timeout=SECONDS)

    def _make_cold(self) -> None:
        _wait(lambda: not self._client.instances())
        _wait(self._is_evicted)

    def _is_evicted(self) -> bool:
        for node in self._client.nodes():
            for copy in node.copies:
                if copy.tier == "DRAM" and not _evict(node.address, copy.digest):
                    return False
        copies = (copy for node in self._client.nodes() for copy in node.copies)
        return not any(copy.tier == "DRAM" for copy in copies)


def _evict(address: str, digest: str) -> bool:
    """Out of a node's memory; whether nothing held it there."""
    request = node_pb.EvictRequest(digest=digest, tier=types_pb.TIER_DRAM)
    with grpc.insecure_channel(address) as channel:
        try:
            NodeServiceStub(channel).Evict(request, timeout=SECONDS)
        except grpc.RpcError:
            return False
    return True


def _wait(check: Callable[[], bool]) -> None:
    until = time.monotonic() + SECONDS
    while not check():
        if time.monotonic() > until:
            raise TimeoutError("a model stays in memory although nobody uses it")
        time.sleep(0.02)


def measure(
    scratch: Path, source: Path, nodes: int, rate: float, prompts: Sequence[list[int]]
) -> list[Way]:
    """Starts alone, and with layers lent; the first of each is not counted."""
    scratch.mkdir()
    ways = [Way(), Way()]
    with ExitStack() as stack:
        stack.enter_context(slow_disk(scratch, bytes_per_second=rate * 1e6))
        options = ("--no-ready-made", "--lend-layers")
        cluster = stack.enter_context(
            local_cluster(
                scratch, nodes=nodes, options=options, dram_bytes=2 * GIB, kv_bytes=GIB // 2
            )
        )
        cluster.wait_for_engines(nodes)
        measured = Nodes(cluster, source)
        subprocess.run(["sync"], check=True)  # what was written is no load of the rounds
        for prompt in prompts:
            for way, alone in zip(ways, (True, False), strict=True):
                measured.start(way, list(prompt), alone=alone)
    for way in ways:
        for values in (way.first_token, way.whole):
            del values[0]
    assert ways[0].tokens == ways[1].tokens, "they answer differently"
    return ways


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Times that each way is measured.")] = 5,
    shape: Annotated[str, typer.Option(help="Of the model; see examples/make_models.py.")] = (
        "qwen2-0.5b"
    ),
    rates: Annotated[str, typer.Option(help="Of each disk, in megabytes per second.")] = (
        "100,200,400"
    ),
    nodes: Annotated[int, typer.Option(min=2, max=4, help="Of which all but one lend.")] = 2,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Of each prompt.")] = 64,
    json: Annotated[Path | None, typer.Option(help="Write the main figures here.")] = None,
) -> None:
    """Measures."""
    found: dict[str, float] = {}
    rows = []
    with tempfile.TemporaryDirectory(prefix="sllm-bench-") as name:
        scratch = Path(name)
        source = make_model(shape, scratch / "model")
        prompts = [list(one) for one in new_prompts(rounds + 1, prompt_tokens, VOCABULARY)]
        for rate in map(float, rates.split(",")):
            alone, lent = measure(scratch / f"at-{rate:g}", source, nodes, rate, prompts)
            rows.append(
                [
                    f"{rate:g}",
                    spread(alone.first_token),
                    spread(lent.first_token),
                    spread(alone.whole),
                    spread(lent.whole),
                ]
            )
            ratios = zip(alone.first_token, lent.first_token, strict=True)
            found[f"first_token_ratio_{rate:g}"] = median(one / other for one, other in ratios)
            found[f"first_token_alone_{rate:g}"] = median(alone.first_token)
            found[f"first_token_lent_{rate:g}"] = median(lent.first_token)
            found[f"answer_alone_{rate:g}"] = median(alone.whole)
            found[f"answer_lent_{rate:g}"] = median(lent.whole)
    columns = ["disk, MB/s", "first token alone, ms", "lent, ms", "answer alone, ms", "lent, ms"]
    print_table(f"{shape}, {nodes} nodes, {rounds} rounds", columns, rows)
    print_table("Figures", ["figure", "value"], [[k, f"{v:.3f}"] for k, v in found.items()])
    write_figures(json, found)


if __name__ == "__main__":
    typer.run(main)
