"""Weights as published beside weights made ready for their engine: starts, decoding, memory.

    make bench-ready BENCH='--rounds 5 --json FILE'

Two clusters of one node, of which one keeps no weights ready. In each round both start each engine
cold out of memory, and decode, in turn; ratios are within rounds.
"""

import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from make_models import make_model

from bench.inference.wire import Deployed
from bench.local_cluster import GIB, LocalCluster, local_cluster
from bench.report import print_table, spread, write_figures
from sllm.node.worker.backends import names

SHAPE = "qwen2-0.5b"
VOCABULARY = 1024
STREAMS = (1, 4, 16)
TOKENS = 32
"""That each stream decodes."""
PATIENCE = 600.0
"""Seconds in which weights are made ready."""
FORMS = ("published", "ready")
ATTACHING = ("ATTACH", "ENGINE_INIT")
"""Phases of a start that have to do with how weights lie."""


@dataclass(slots=True)
class Way:
    """One engine over weights of one form."""

    deployed: Deployed
    values: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def prepare(self, ready: bool) -> None:
        """Starts it once, and waits for what comes of that."""
        self.deployed.deploy(keep_alive=PATIENCE)
        self.deployed.first_token(32)
        until = time.monotonic() + PATIENCE
        while ready and not self._ready_bytes():
            if time.monotonic() > until:
                raise TimeoutError(f"weights were not made ready for {self.deployed.engine}")
            time.sleep(0.5)

    def round(self) -> None:
        """One cold start and what follows it."""
        client, name = self.deployed.cluster.client, self.deployed.name
        self.values["first token"].append(self.deployed.cold_start())
        self.deployed.deploy(keep_alive=0.0)
        self.deployed.wait_until_idle()
        receipt = client.complete(name, "Once", max_tokens=1).receipt
        phases = [one for one in receipt.phases if one.kind in ATTACHING]
        self.values["attach"].append(sum(one.duration for one in phases))
        self.deployed.deploy(keep_alive=PATIENCE)
        self.deployed.first_token(32)
        for streams in STREAMS:
            self.values[f"decode {streams}"].append(self.deployed.decode(streams, TOKENS))
        (instance,) = [one for one in client.instances() if one.deployment == name]
        (node,) = client.nodes()
        weights = max(one.size_bytes for one in node.copies if one.digest == instance.digest)
        self.values["private"].append(instance.own_bytes / weights)

    def _ready_bytes(self) -> int:
        (node,) = self.deployed.cluster.client.nodes()
        used = [one for one in node.copies if one.made_of and one.tier == "DRAM"]
        engines = {one.engine for one in self.deployed.cluster.client.instances()}
        return sum(one.resident_bytes for one in used) if len(used) >= len(engines) else 0


def ways_of(source: Path, scratch: Path, stack: ExitStack) -> dict[tuple[str, str], Way]:
    """Each engine over weights of each form."""
    ways = {}
    for form in FORMS:
        directory = scratch / form
        directory.mkdir()
        cluster = _cluster(directory, form, stack)
        for engine in names.installed():
            way = ways[engine, form] = Way(Deployed(cluster, engine, source, VOCABULARY))
            way.prepare(form == "ready")
    return ways


def _cluster(directory: Path, form: str, stack: ExitStack) -> LocalCluster:
    options = () if form == "ready" else ("--no-ready-made",)
    return stack.enter_context(
        local_cluster(
            directory,
            dram_bytes=5 * GIB,
            kv_bytes=GIB,
            engines=",".join(names.installed()),
            options=options,
        )
    )


def figures(ways: Mapping[tuple[str, str], Way]) -> dict[str, float]:
    """The main ones."""
    found: dict[str, float] = {}
    for engine in names.installed():
        published, ready = (ways[engine, form].values for form in FORMS)
        found[f"{engine}_attach_published_seconds"] = median(published["attach"])
        found[f"{engine}_attach_ready_seconds"] = median(ready["attach"])
        found[f"{engine}_first_token_published_seconds"] = median(published["first token"])
        found[f"{engine}_first_token_ready_seconds"] = median(ready["first token"])
        found[f"{engine}_private_bytes_ratio"] = median(ready["private"])
        for streams in STREAMS:
            pairs = zip(ready[f"decode {streams}"], published[f"decode {streams}"], strict=True)
            found[f"{engine}_decode_gain_{streams}"] = median(one / other for one, other in pairs)
    return found


def _print(ways: Mapping[tuple[str, str], Way]) -> None:
    whats = list(next(iter(ways.values())).values)
    units = {"first token": "ms", "attach": "ms"}
    rows = [
        [what, *(spread(way.values[what], units.get(what, "")) for way in ways.values())]
        for what in whats
    ]
    print_table(SHAPE, ["", *(f"{engine}, {form}" for engine, form in ways)], rows)


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Times that everything is measured.")] = 3,
    json: Annotated[Path | None, typer.Option(help="Write the main figures here.")] = None,
) -> None:
    """Measures; the first round is not counted."""
    with tempfile.TemporaryDirectory(prefix="sllm-bench-") as name, ExitStack() as stack:
        scratch = Path(name)
        ways = ways_of(make_model(SHAPE, scratch / "model"), scratch, stack)
        for number in range(rounds + 1):
            for way in ways.values():
                if number == 1:
                    way.values.clear()
                way.round()
    _print(ways)
    found = figures(ways)
    print_table("Figures", ["figure", "value"], [[k, f"{v:.3f}"] for k, v in found.items()])
    write_figures(json, found)


if __name__ == "__main__":
    typer.run(main)
