"""A conversation that returns to a cold model: with pages that the node has kept, and without.

    PYTHONPATH=examples python -m bench.kv --rounds 3 --json FILE

The model has the shape of Qwen2.5-0.5B, in bfloat16, with random weights. Each round sends a prompt
that nobody has sent, to a model that is cold: all of it is computed. Then the model is cold again,
and the same prompt returns. At last the node is started anew, and the prompts return once more,
from its disk. Weights are in memory each time.

Then generations move between two nodes, by tokens and by pages: see `bench.moving.choices`, which
takes root, and is left out without it.
"""

import json as json_lib
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Annotated

import psutil
import typer
from make_models import make_model

import sllm
from bench.local_cluster import GIB, MIB, LocalCluster, local_cluster
from bench.report import print_table, spread, write_figures

NAME = "model"
TRANSFORMERS = "transformers"
SHAPE = "qwen2-0.5b"
LENGTHS = "64,256,1024,4096"
VOCABULARY = 100_000
FRESH, DRAM, SSD = "computed", "kept in DRAM", "kept on SSD"
OPTIONS = ("--kv-cache-dram", str(GIB), "--kv-cache-ssd", str(4 * GIB))
POLL_SECONDS = 0.02
RESTART_SECONDS = 300.0
SETTLE_SECONDS = 3.0
"""In which what was written to memory goes to the disk."""

Times = dict[tuple[str, int], list[float]]
"""Seconds to the first token, by way and length of the prompt."""


def ask(client: sllm.Client, prompt: Sequence[int]) -> sllm.Result:
    """One token of a model that is cold, whose weights are in memory."""
    while client.instances(NAME):
        time.sleep(POLL_SECONDS)
    result = client.complete(
        NAME, prompt_token_ids=prompt, max_tokens=1, temperature=0.0, ignore_eos=True
    )
    assert result.receipt.cold, "an instance was left"
    return result


def returns(
    client: sllm.Client, prompts: dict[int, list[list[int]]], way: str, times: Times
) -> None:
    """Has each prompt return once."""
    for length, several in prompts.items():
        for prompt in several:
            result = ask(client, prompt)
            found = ", ".join(f"{one.tokens} from {one.tier}" for one in result.receipt.kept_prompt)
            times[way, length].append(result.receipt.time_to_first_token)
            print(f"{way}, {length} tokens: {times[way, length][-1]:.3f} s ({found or 'none'})")


def measure(
    cluster: LocalCluster, source: Path, engine: str, lengths: Sequence[int], rounds: int
) -> Times:
    """Rounds of all lengths."""
    client, chosen = cluster.client, random.Random(0)
    times: Times = defaultdict(list)
    client.deploy(NAME, source, engine=engine, keep_alive=0.0)
    ask(client, [1, 2, 3])  # its weights are in memory from now on
    sent: dict[int, list[list[int]]] = {length: [] for length in lengths}
    for _ in range(rounds):
        for length in lengths:
            prompt = [chosen.randrange(VOCABULARY) for _ in range(length)]
            sent[length].append(prompt)
            returns(client, {length: [prompt]}, FRESH, times)
            returns(client, {length: [prompt]}, DRAM, times)
    time.sleep(SETTLE_SECONDS)
    restart_node(cluster)
    ask(client, [1, 2, 3])
    returns(client, sent, SSD, times)
    return times


def restart_node(cluster: LocalCluster) -> None:
    """Ends the node, whose memory goes with it; `sllm up` starts it again."""
    node = cluster.server("node-1")
    node.terminate()
    psutil.wait_procs([node], RESTART_SECONDS)
    until = time.monotonic() + RESTART_SECONDS
    while not any(node.engines for node in cluster.client.nodes()):
        if time.monotonic() > until:
            raise TimeoutError("the node did not come back; see its log")
        time.sleep(POLL_SECONDS)
    cluster.wait_for_engines(1)


def speedup(times: Times, way: str, length: int) -> float:
    """How many times sooner than computing, the median of each."""
    return median(times[FRESH, length]) / median(times[way, length])


def main(
    rounds: Annotated[int, typer.Option(help="Prompts of each length.")] = 3,
    lengths: Annotated[str, typer.Option(help="Tokens of prompts.")] = LENGTHS,
    engine: Annotated[str, typer.Option(help="Which computes.")] = TRANSFORMERS,
    moves: Annotated[bool, typer.Option(help="Measure moves as well.")] = True,
    json: Annotated[Path | None, typer.Option(help="Write the main figures here.")] = None,
) -> None:
    """Measures, and prints tables."""
    counts = [int(one) for one in lengths.split(",")]
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        source = make_model(SHAPE, scratch / "model")
        with local_cluster(
            scratch, dram_bytes=3 * GIB, kv_bytes=512 * MIB, engines=engine, options=OPTIONS
        ) as cluster:
            cluster.wait_for_engines(1)
            times = measure(cluster, source, engine, counts, rounds)
    rows = [
        [
            str(length),
            *(spread([1e3 * one for one in times[way, length]]) for way in (FRESH, DRAM, SSD)),
            *(f"{speedup(times, way, length):.2f}" for way in (DRAM, SSD)),
        ]
        for length in counts
    ]
    columns = ["prompt, tokens", *(f"{way}, ms" for way in (FRESH, DRAM, SSD))]
    print_table(
        f"return to a cold model on {engine}", [*columns, "times sooner, DRAM", "SSD"], rows
    )
    of = "" if engine == TRANSFORMERS else f"_{engine}"
    write_figures(
        json,
        {
            **{f"return_speedup_{one}{of}": speedup(times, DRAM, one) for one in counts},
            **{f"return_speedup_{one}_ssd{of}": speedup(times, SSD, one) for one in counts},
            **(moved_figures(rounds) if moves else {}),
        },
    )


def moved_figures(rounds: int) -> dict[str, float]:
    """What moves have come to, in a network namespace of their own."""
    if os.geteuid() != 0:
        print("moves are not measured: a network namespace takes root")
        return {}
    with tempfile.TemporaryDirectory() as name:
        found = Path(name) / "moves.json"
        command = [sys.executable, "-m", "bench.moving.choices", "--rounds", str(rounds)]
        subprocess.run([*command, "--json", str(found)], check=True)
        figures: dict[str, float] = json_lib.loads(found.read_text())
        return figures


if __name__ == "__main__":
    typer.run(main)
