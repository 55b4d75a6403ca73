"""First tokens from a slow disk: begun while weights arrive, beside begun when all are there.

    make bench-order BENCH='--rounds 7 --megabytes-per-second 400 --json FILE'

Two clusters of one node over the same slow disk (see slow_disk.py), of which one waits for all
weights. In each round both start the model cold from SSD, in turn; ratios are within rounds.
"""

import subprocess
import tempfile
import time
from collections.abc import Callable
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
WAYS = {"as they arrive": (), "when all are there": ("--no-early-start",)}


@dataclass(slots=True)
class Way:
    """One node, and what it took; an entry for every round."""

    cluster: LocalCluster
    source: Path
    first_token: list[float] = field(default_factory=list)
    """Seconds from the call to the first token."""
    last_byte: list[float] = field(default_factory=list)
    """Seconds from the call to the last byte's arrival in memory."""
    tokens: list[tuple[int, ...]] = field(default_factory=list)

    @property
    def after(self) -> list[float]:
        """Seconds from the last byte to the first token."""
        pairs = zip(self.first_token, self.last_byte, strict=True)
        return [first - last for first, last in pairs]

    def deploy(self) -> None:
        """Brings the model to SSD, and has it run once."""
        source = f"file://{self.source}"
        self.cluster.client.deploy("m", source, pack=True, keep_alive=0.0, timeout=SECONDS)
        self.cluster.client.complete("m", "Once", max_tokens=1, timeout=SECONDS)

    def round(self, prompt: list[int]) -> None:
        """One start from SSD."""
        self._wait(lambda: not self.cluster.client.instances())
        self._evict()
        result = self.cluster.client.complete(
            "m", prompt_token_ids=prompt, max_tokens=4, temperature=0.0, timeout=SECONDS
        )
        reads = [one for one in result.receipt.phases if one.kind == "READ_SSD"]
        self.first_token.append(result.receipt.time_to_first_token)
        self.last_byte.append(max(one.start + one.duration for one in reads))
        self.tokens.append(tuple(result.token_ids))

    def _evict(self) -> None:
        with grpc.insecure_channel(self.cluster.node_address) as channel:
            for digest in self.cluster.digests_in_dram():
                request = node_pb.EvictRequest(digest=digest, tier=types_pb.TIER_DRAM)
                NodeServiceStub(channel).Evict(request, timeout=SECONDS)

    def _wait(self, check: Callable[[], bool]) -> None:
        until = time.monotonic() + SECONDS
        while not check():
            if time.monotonic() > until:
                raise TimeoutError("an instance stays although nobody uses it")
            time.sleep(0.02)


def figures(early: Way, whole: Way) -> dict[str, float]:
    """The main ones.

    `first_token_before_last_byte`: of the time from the last byte to the first token, the part that
    goes before the last byte where layers run as they arrive; 0: none, 1: all.
    """
    pairs = list(zip(early.after, whole.after, strict=True))
    totals = zip(early.first_token, whole.first_token, strict=True)
    return {
        "first_token_before_last_byte": median(1 - one / other for one, other in pairs),
        "first_token_gain_seconds": median(other - one for one, other in totals),
        "after_last_byte_early_seconds": median(early.after),
        "after_last_byte_whole_seconds": median(whole.after),
        "first_token_early_seconds": median(early.first_token),
        "first_token_whole_seconds": median(whole.first_token),
    }


def _print(title: str, ways: dict[str, Way]) -> None:
    rows = [
        [name, spread(way.first_token), spread(way.last_byte), spread(way.after)]
        for name, way in ways.items()
    ]
    columns = ["layers run", "first token, ms", "last byte, ms", "from then to the token, ms"]
    print_table(title, columns, rows)


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Times that each way is measured.")] = 7,
    shape: Annotated[str, typer.Option(help="Of the model; see examples/make_models.py.")] = (
        "qwen2-0.5b"
    ),
    megabytes_per_second: Annotated[float, typer.Option(help="Of the disk.")] = 400.0,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Of each prompt.")] = 256,
    json: Annotated[Path | None, typer.Option(help="Write the main figures here.")] = None,
) -> None:
    """Measures; the first round is not counted."""
    ways: dict[str, Way] = {}
    with tempfile.TemporaryDirectory(prefix="sllm-bench-") as name, ExitStack() as stack:
        scratch = Path(name)
        source = make_model(shape, scratch / "model")
        stack.enter_context(slow_disk(scratch, bytes_per_second=megabytes_per_second * 1e6))
        for way, options in WAYS.items():
            directory = scratch / way.replace(" ", "-")
            directory.mkdir()
            cluster = stack.enter_context(
                local_cluster(
                    directory,
                    dram_bytes=3 * GIB,
                    kv_bytes=GIB,
                    options=("--no-ready-made", *options),
                )
            )
            ways[way] = Way(cluster, source)
            ways[way].deploy()
        subprocess.run(["sync"], check=True)  # what was written is no load of the rounds
        for prompt in new_prompts(rounds + 1, prompt_tokens, VOCABULARY):
            for measured in ways.values():
                measured.round(list(prompt))
    early, whole = ways.values()
    assert early.tokens == whole.tokens, "they answer differently"
    for measured in ways.values():
        for values in (measured.first_token, measured.last_byte, measured.tokens):
            del values[0]
    size = f"{prompt_tokens} tokens, {megabytes_per_second:g} MB/s"
    _print(f"{shape}, prompts of {size}, {rounds} rounds", ways)
    found = figures(early, whole)
    print_table("Figures", ["figure", "value"], [[k, f"{v:.3f}"] for k, v in found.items()])
    write_figures(json, found)


if __name__ == "__main__":
    typer.run(main)
