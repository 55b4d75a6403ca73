"""Weights as published beside weights made ready for their engine: starts, decoding, memory.

    make bench-ready BENCH='--rounds 5 --json FILE'
    make bench-ready BENCH='--shape opt-1.3b --dtype bfloat16 --engine vllm --no-decode'

Two clusters of one node, of which one keeps no weights ready. In each round both start each engine
cold out of memory, and decode, in turn; beside vLLM, its own loader takes the same files from the
page cache. Ratios are within rounds.
"""

import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from make_models import make_model

import sllm
from bench.inference.plain_loader import PlainLoader
from bench.inference.wire import Deployed
from bench.local_cluster import GIB, LocalCluster, local_cluster
from bench.report import print_table, spread, write_figures
from sllm.node.worker.backends import names
from sllm.node.worker.backends.names import VLLM

SHAPE = "qwen2-0.5b"
VOCABULARY = 1024
STREAMS = (1, 4, 16)
TOKENS = 32
"""That each stream decodes."""
KV_TOKENS = 2048
PATIENCE = 600.0
"""Seconds in which weights are made ready."""
FORMS = ("published", "ready")
_POOL = 1.3
"""Times the weights, for what is published and for what was made ready for each engine."""
ATTACHING = ("ATTACH", "ENGINE_INIT")
"""Phases of a start that have to do with how weights lie."""


@dataclass(slots=True)
class Way:
    """One engine over weights of one form."""

    deployed: Deployed
    values: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    first_start: float = 0.0
    """Seconds to the first token of the first start, which reads the weights from the disk."""

    def prepare(self, ready: bool) -> bool:
        """Starts it once, and waits for what comes of that; False: weights are not made ready."""
        self.deployed.deploy(keep_alive=PATIENCE)
        self.first_start = self.deployed.first_token(32)
        until = time.monotonic() + PATIENCE
        while ready and not self._ready_bytes():
            if self._has_no_form():
                return False
            if time.monotonic() > until:
                raise TimeoutError(f"weights were not made ready for {self.deployed.engine}")
            time.sleep(0.5)
        return True

    def round(self, counts: Sequence[int]) -> None:
        """One cold start and what follows it: decoding of so many streams, one after the other."""
        client, name = self.deployed.cluster.client, self.deployed.name
        self.values["first token"].append(self.deployed.cold_start())
        self.deployed.deploy(keep_alive=0.0)
        self.deployed.wait_until_idle()
        receipt = client.complete(name, "Once", max_tokens=1).receipt
        phases = [one for one in receipt.phases if one.kind in ATTACHING]
        self.values["attach"].append(sum(one.duration for one in phases))
        self.deployed.deploy(keep_alive=PATIENCE)
        self.deployed.first_token(32)
        for streams in counts:
            self.values[f"decode {streams}"].append(self.deployed.decode(streams, TOKENS))
        self.values["private"].append(self._private())

    def _private(self) -> float:
        """What its instance has written of its own, over its weights, once that was measured."""
        client, until = self.deployed.cluster.client, time.monotonic() + PATIENCE
        while not (own := self._instance().own_bytes):
            if time.monotonic() > until:
                raise TimeoutError(f"the memory of {self.deployed.name} was not measured")
            time.sleep(0.2)
        (node,) = client.nodes()
        digest = self._instance().digest
        return own / max(one.size_bytes for one in node.copies if one.digest == digest)

    def _instance(self) -> sllm.Instance:
        instances = self.deployed.cluster.client.instances()
        (found,) = [one for one in instances if one.deployment == self.deployed.name]
        return found

    def _has_no_form(self) -> bool:
        """Whether the node says that it makes none, as where kernels read what is published."""
        (node,) = self.deployed.cluster.client.nodes()
        made_for = self.deployed.engine
        problems = [one.problem for one in node.unmade_forms if one.made_for == made_for]
        for problem in problems:
            print(f"{made_for}: weights are not made ready: {problem}")
        return bool(problems)

    def _ready_bytes(self) -> int:
        (node,) = self.deployed.cluster.client.nodes()
        used = [one for one in node.copies if one.made_of and one.tier == "DRAM"]
        engines = {one.engine for one in self.deployed.cluster.client.instances()}
        return sum(one.resident_bytes for one in used) if len(used) >= len(engines) else 0


def ways_of(
    source: Path, scratch: Path, engines: Sequence[str], stack: ExitStack
) -> dict[tuple[str, str], Way]:
    """Each engine over weights of each form, but for engines that have none of their own here."""
    ways = {}
    without = set()
    for form in FORMS:
        directory = scratch / form
        directory.mkdir()
        cluster = _cluster(directory, form, _bytes_of(source), engines, stack)
        for engine in engines:
            deployed = Deployed(cluster, engine, source, VOCABULARY, kv_tokens=KV_TOKENS)
            way = ways[engine, form] = Way(deployed)
            if not way.prepare(form == "ready"):
                without.add(engine)
    return {key: way for key, way in ways.items() if key[0] not in without}


def _bytes_of(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())


def _cluster(
    directory: Path, form: str, size_bytes: int, engines: Sequence[str], stack: ExitStack
) -> LocalCluster:
    options = () if form == "ready" else ("--no-ready-made",)
    copies = 1 + len(engines) if form == "ready" else 1
    return stack.enter_context(
        local_cluster(
            directory,
            dram_bytes=int(size_bytes * _POOL * copies),
            kv_bytes=GIB,
            engines=",".join(engines),
            options=options,
        )
    )


def figures(
    ways: Mapping[tuple[str, str], Way], loads: Sequence[float], shape: str
) -> dict[str, float]:
    """The main ones; those without an engine's name are of the one that is preferred.

    Args:
        ways: what was measured of each.
        loads: what vLLM's own loader took in each round, if it took part.
        shape: of the model.
    """
    engines = list(dict.fromkeys(engine for engine, _ in ways))
    preferred = ways[engines[0], "ready"]
    found = {
        "attach_ready_seconds": median(preferred.values["attach"]),
        "first_start_seconds": preferred.first_start,
        "private_bytes_ratio": median(preferred.values["private"]),
    }
    if shape == SHAPE:
        found["cold_dram_half_b_seconds"] = median(preferred.values["first token"])
    for engine in engines:
        published, ready = (ways[engine, form].values for form in FORMS)
        found[f"{engine}_attach_published_seconds"] = median(published["attach"])
        found[f"{engine}_attach_ready_seconds"] = median(ready["attach"])
        found[f"{engine}_first_token_published_seconds"] = median(published["first token"])
        found[f"{engine}_first_token_ready_seconds"] = median(ready["first token"])
        found[f"{engine}_private_bytes_ratio"] = median(ready["private"])
        for streams in [count for count in STREAMS if f"decode {count}" in ready]:
            pairs = zip(ready[f"decode {streams}"], published[f"decode {streams}"], strict=True)
            found[f"{engine}_decode_gain_{streams}"] = median(one / other for one, other in pairs)
    if loads:
        found["vllm_loader_seconds"] = median(loads)
        for form in FORMS:
            pairs = zip(loads, ways[VLLM, form].values["attach"], strict=True)
            found[f"attach_{form}_gain_over_vllm_loader"] = median(one / own for one, own in pairs)
    return found


def _print(ways: Mapping[tuple[str, str], Way], loads: Sequence[float], title: str) -> None:
    whats = list(next(iter(ways.values())).values)
    units = {"first token": "ms", "attach": "ms"}
    rows = [
        [what, *(spread(way.values[what], units.get(what, "")) for way in ways.values())]
        for what in whats
    ]
    print_table(title, ["", *(f"{engine}, {form}" for engine, form in ways)], rows)
    if loads:
        print(f"vLLM's own loader, files in the page cache: {spread(loads)} ms")


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Times that everything is measured.")] = 3,
    shape: Annotated[str, typer.Option(help="Of the model.")] = SHAPE,
    dtype: Annotated[str | None, typer.Option(help="Of its weights; else as published.")] = None,
    engine: Annotated[list[str] | None, typer.Option(help="Only these.")] = None,
    decode: Annotated[bool, typer.Option(help="Measure decoding, beside starts.")] = True,
    json: Annotated[Path | None, typer.Option(help="Write the main figures here.")] = None,
) -> None:
    """Measures; the first round is not counted."""
    engines = engine or names.installed()
    with tempfile.TemporaryDirectory(prefix="sllm-bench-") as name, ExitStack() as stack:
        scratch = Path(name)
        source = make_model(shape, scratch / "model", dtype=dtype)
        ways = ways_of(source, scratch, engines, stack)
        if not ways:
            raise typer.Exit(1)
        loader = (
            stack.enter_context(closing(PlainLoader(source))) if (VLLM, "ready") in ways else None
        )
        loads = []
        for number in range(rounds + 1):
            for way in ways.values():
                if number == 1:
                    way.values.clear()
                way.round(STREAMS if decode else ())
            loads += [loader.seconds()] if loader else []
    _print(ways, loads[1:], f"{shape}, {dtype or 'as published'}")
    found = figures(ways, loads[1:], shape)
    print_table("Figures", ["figure", "value"], [[k, f"{v:.3f}"] for k, v in found.items()])
    write_figures(json, found)


if __name__ == "__main__":
    typer.run(main)
