"""Everything that is measured on a GPU, in one run: each part by itself, whatever the others do.

    ./bench/gpu.sh                       # on a bare machine: tests marked cuda, then this
    python -m bench.gpu --json FILE

Not yet run on a GPU.
"""

import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from bench.on_gpu import batching, ceilings, peers, serving, tiers
from bench.report import print_table, write_figures
from sllm.cli.receipts import receipts_table

MODELS = ("opt-6.7b", "llama-2-7b")
MAIN = "llama-2-7b"
SHARDS = 3


class Run:
    """What was measured so far, and how much time is left."""

    def __init__(self, directory: Path, rounds: int, seconds: float, json: Path | None) -> None:
        self.directory = directory
        self._json = json
        self.rounds = rounds
        self.rows: list[list[str]] = []
        self.figures: dict[str, float] = {}
        self._ends = time.monotonic() + seconds

    def part(self, name: str, measure: Callable[[], None]) -> None:
        """Measures, unless time is up; a failure is told and does not end the others."""
        if time.monotonic() > self._ends:
            self.rows.append([name, "no time was left", ""])
            return
        began = time.monotonic()
        print(f"--- {name}", flush=True)
        try:
            measure()
        except Exception as error:
            traceback.print_exc()
            self.rows.append([name, f"FAILED: {str(error)[:60]}", ""])
        print(f"--- {name}: {time.monotonic() - began:.1f} s", flush=True)
        write_figures(self._json, self.figures)

    def row(self, what: str, value: str, beside: str = "") -> None:
        """One line of the table."""
        print(f"{what}: {value} {beside}", flush=True)
        self.rows.append([what, value, beside])

    def model(self, name: str) -> Path:
        """Where a model is."""
        return self.directory / name


def main(
    directory: Annotated[
        Path | None, typer.Option(help="Where models are, or are made; on the disk to measure.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Times that everything is measured.")] = 3,
    seconds: Annotated[float, typer.Option(help="No part begins after this time.")] = 420.0,
    json: Annotated[Path | None, typer.Option(help="Write the main figures here.")] = None,
) -> None:
    """Measures everything, prints one table, and writes the figures."""
    with tempfile.TemporaryDirectory(prefix="sllm-gpu-") as scratch:
        run = Run(directory or Path(scratch), rounds, seconds, json)
        _measure(run, Path(scratch))
    print_table(torch.cuda.get_device_name(0), ["what", "came to", "beside"], run.rows)


def _measure(run: Run, scratch: Path) -> None:
    run.part("models", lambda: make_models(run.directory))
    run.part("ceilings", lambda: _ceilings(run))
    for name in (MAIN, *(one for one in MODELS if one != MAIN)):
        run.part(f"tiers, {name}", lambda name=name: _tiers(run, name, scratch))  # type: ignore[misc]
    run.part("serving", lambda: _serving(run, scratch))
    run.part("decoding beside transformers", lambda: _decoding(run))
    for name, load in peers.PEERS.items():
        run.part(name, lambda name=name, load=load: _peer(run, name, load))  # type: ignore[misc]


def make_models(directory: Path) -> None:
    """Those that are not there yet, side by side."""
    missing = [name for name in MODELS if not (directory / name / "config.json").exists()]
    makers = [
        subprocess.Popen(
            [
                *(sys.executable, "examples/make_models.py", name, str(directory / name)),
                *("--dtype", "bfloat16", "--shards", str(SHARDS)),
            ]
        )
        for name in missing
    ]
    statuses = [maker.wait() for maker in makers]
    assert not any(statuses), "a model was not made"


def _ceilings(run: Run) -> None:
    pinned = ceilings.pinned_copy_bytes_per_second()
    run.row("pinned copy, host to device", f"{pinned / 1e9:.2f} GB/s")
    run.figures["pinned_copy_bytes_per_second"] = pinned
    files = sorted(run.model(MAIN).glob("*.safetensors"))
    disk = ceilings.direct_read_bytes_per_second(files)
    run.row("direct read of the disk", f"{disk / 1e9:.2f} GB/s")
    run.figures["direct_read_bytes_per_second"] = disk


def _tiers(run: Run, name: str, scratch: Path) -> None:
    timed = tiers.measure(run.model(name), scratch / f"tiers-{name}", run.rounds)
    bus = run.figures["pinned_copy_bytes_per_second"]
    slower = min(bus, run.figures["direct_read_bytes_per_second"])
    dram = timed.size_bytes / statistics.median(timed.dram)
    ssd = timed.size_bytes / statistics.median(timed.ssd)
    passing = timed.size_bytes / statistics.median(timed.passing)
    run.row(f"{name}, DRAM to device", _speed(timed.dram, dram), f"{dram / bus:.2f} of pinned copy")
    run.row(f"{name}, SSD to device", _speed(timed.ssd, ssd), f"{ssd / slower:.2f} of slower link")
    run.row(
        f"{name}, through a small pool",
        _speed(timed.passing, passing),
        f"{passing / slower:.2f} of slower link",
    )
    if name == MAIN:
        run.figures["dram_ratio_to_pinned_copy"] = dram / bus
        run.figures["ssd_ratio_to_slower_link"] = ssd / slower


def _speed(seconds: tuple[float, ...], bytes_per_second: float) -> str:
    low, high = min(seconds), max(seconds)
    middle = statistics.median(seconds)
    return f"{middle:.3f} s ({low:.3f} - {high:.3f}), {bytes_per_second / 1e9:.2f} GB/s"


def _serving(run: Run, scratch: Path) -> None:
    served = serving.measure(run.model(MAIN), scratch / "cluster", run.rounds)
    Console(width=110).print(receipts_table(served.receipts))
    for start, seconds in served.first_token.items():
        run.row(f"first token, {start}", f"{statistics.median(seconds):.3f} s", _range(seconds))
    for streams, rate in served.tokens_per_second.items():
        run.row(f"decoding, {streams} streams", f"{rate:.1f} tokens/s")
        run.figures[f"decode_tokens_per_second_{streams}"] = rate
    medians = {start: statistics.median(one) for start, one in served.first_token.items()}
    run.figures["first_token_ssd_7b_seconds"] = medians["SSD"]
    run.figures["first_token_dram_7b_seconds"] = medians["DRAM"]
    run.figures["first_token_device_7b_seconds"] = medians["DEVICE"]
    run.figures["first_token_warm_7b_seconds"] = medians["warm"]


def _range(seconds: list[float]) -> str:
    return f"{min(seconds):.3f} - {max(seconds):.3f}"


def _decoding(run: Run) -> None:
    for streams in (1, serving.STREAMS):
        peer = batching.tokens_per_second(run.model(MAIN), streams)
        run.row(f"transformers' batching, {streams} streams", f"{peer:.1f} tokens/s")
        ours = run.figures.get(f"decode_tokens_per_second_{streams}")
        if ours is not None:
            run.figures[f"decode_ratio_to_transformers_{streams}"] = ours / peer


def _peer(run: Run, name: str, load: peers.Load) -> None:
    model = run.model(MAIN)
    if name == "torch.load" and not (model / "weights.pt").exists():
        peers.write_torch_file(model)
    for cold in (True, False):
        seconds = peers.seconds(load, model, cold=cold)
        run.row(f"{name}, {'cold' if cold else 'cached'}", f"{seconds:.3f} s")


if __name__ == "__main__":
    typer.run(main)
