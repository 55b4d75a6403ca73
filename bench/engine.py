"""Engines side by side: vLLM's core alone, ours on it, transformers', and both through the wire.

    make bench-engine BENCH='--rounds 5 --json FILE'
    make bench-engine BENCH='--no-wire --models demo'
    make bench-engine BENCH='--models 0.5B --streams 1,16 --contenders bare,"wire vllm"'

Everything is interleaved: in each round every contender decodes and computes prompts once, in turn,
so that a machine that drifts drifts for all of them, and figures are medians of what one round has
of two contenders. vLLM's own server is started as its users start it; where it cannot be, the table
says why.
"""

import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from make_models import make_model
from transformers import AutoConfig

from bench.inference.process import CONTEXT, EngineProcess
from bench.inference.timing import Contender
from bench.inference.vllm_server import serve_cold_start
from bench.inference.wire import Deployed
from bench.local_cluster import GIB, local_cluster
from bench.report import print_table, spread, write_figures

EXAMPLES = Path(__file__).parent.parent / "examples"
PROMPTS = (32, 512, 2048)
TOKENS = 64
"""That each stream decodes."""
KINDS = ("bare", "vllm", "transformers")
WIRES = ("vllm", "transformers")
ALL = (*KINDS, *(f"wire {name}" for name in WIRES), "vllm serve")
Values = Mapping[tuple[str, str], list[float]]
"""By contender and what was measured, one for each round."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured of each model."""

    rounds: int
    streams: tuple[int, ...]
    contenders: tuple[str, ...]

    @property
    def wires(self) -> tuple[str, ...]:
        """Engines behind a cluster."""
        return tuple(name for name in WIRES if f"wire {name}" in self.contenders)


@dataclass(slots=True)
class Model:
    """One model, and what was measured of it."""

    name: str
    source: Path
    plan: Plan
    values: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    refusals: dict[str, str] = field(default_factory=dict)
    """Why a contender is not there, by its name."""

    @property
    def prompts(self) -> tuple[int, ...]:
        """Lengths that fit its context."""
        config = AutoConfig.from_pretrained(self.source)
        context = min(CONTEXT, config.max_position_embeddings)
        return tuple(length for length in PROMPTS if length < context)

    @property
    def vocabulary(self) -> int:
        """Of the tokens in prompts."""
        return int(AutoConfig.from_pretrained(self.source).vocab_size)


@contextmanager
def busy_core() -> Iterator[None]:
    """Another program takes a processor."""
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        other.kill()
        other.wait()


def measure(model: Model, name: str, contender: Contender) -> None:
    """One contender's turn in a round."""
    for streams in model.plan.streams:
        rate = contender.decode(streams, TOKENS)
        model.values[name, f"decode {streams}"].append(rate)
    model.values[name, "seeded 16"].append(contender.decode(16, TOKENS, seeded=True))
    for length in model.prompts:
        model.values[name, f"first {length}"].append(contender.first_token(length))
    if isinstance(contender, Deployed):
        model.values[name, "relay"].append(contender.relay_seconds(16, TOKENS))
    with busy_core():
        model.values[name, "busy 16"].append(contender.decode(16, TOKENS))


def measure_cold(model: Model, name: str, deployed: Deployed) -> None:
    """A cold start out of memory; the instance stays for what comes after it."""
    model.values[name, "cold"].append(deployed.cold_start())
    deployed.deploy(keep_alive=600.0)
    deployed.first_token(PROMPTS[0])


def run(model: Model, scratch: Path) -> None:
    """Measures all contenders, the first round without counting it."""
    with ExitStack() as stack:
        contenders = _contenders(model, scratch, stack)
        for number in range(model.plan.rounds + 1):
            if number == 1:
                model.values.clear()
            for name, contender in contenders.items():
                if isinstance(contender, Deployed):
                    measure_cold(model, name, contender)
                measure(model, name, contender)
    if "vllm serve" in model.plan.contenders:
        _try(model, "vllm serve", partial(_serve, model, scratch))


def _contenders(
    model: Model, scratch: Path, stack: ExitStack
) -> dict[str, EngineProcess | Deployed]:
    found: dict[str, EngineProcess | Deployed] = {}
    for kind in KINDS:
        if kind not in model.plan.contenders:
            continue
        process = EngineProcess(kind, model.source, model.vocabulary)
        stack.callback(process.close)
        found[kind] = process
    if model.plan.wires:
        directory = scratch / f"cluster-{model.name}"
        directory.mkdir()
        cluster = stack.enter_context(
            local_cluster(
                directory,
                dram_bytes=3 * GIB,
                kv_bytes=2 * GIB,
                engines=",".join(model.plan.wires),
            )
        )
        for engine in model.plan.wires:
            deployed = Deployed(cluster, engine, model.source, model.vocabulary)
            if _try(model, f"wire {engine}", partial(deployed.deploy, keep_alive=600.0)):
                stack.callback(deployed.close)
                found[f"wire {engine}"] = deployed
    return found


def _try(model: Model, name: str, work: Callable[[], object]) -> bool:
    """Whether it went well; else the reason is kept for the table."""
    try:
        work()
    except Exception as error:  # whatever keeps a contender away is told
        model.refusals[name] = str(error)
        return False
    return True


def _serve(model: Model, scratch: Path) -> None:
    for _ in range(model.plan.rounds):
        seconds = serve_cold_start(model.source, scratch / "vllm-serve.log")
        model.values["vllm serve", "cold"].append(seconds)


def ratio(values: Values, one: tuple[str, str], other: tuple[str, str]) -> float | None:
    """Median over rounds of one thing over another; None: one of them was not measured."""
    pairs = list(zip(values.get(one, ()), values.get(other, ()), strict=False))
    return median(first / second for first, second in pairs) if pairs else None


def figures(models: Mapping[str, Model], plan: Plan) -> dict[str, float]:
    """The main figures, of what was measured. Without the wire, those of our engine alone."""
    ours = "wire vllm" if "vllm" in plan.wires else "vllm"
    demo, half = (models[name].values if name in models else {} for name in ("demo", "0.5B"))

    def middle(values: Values, what: str) -> float | None:
        found = values.get((ours, what))
        return median(found) if found else None

    firsts = [half.get((name, "first 32"), []) for name in (ours, "bare")]
    warm = [mine - bare for mine, bare in zip(*firsts, strict=False)]
    found = {
        "decode_ratio_to_bare_1": ratio(half, (ours, "decode 1"), ("bare", "decode 1")),
        "decode_ratio_to_bare_16": ratio(half, (ours, "decode 16"), ("bare", "decode 16")),
        "decode_ratio_to_bare_demo_16": ratio(demo, (ours, "decode 16"), ("bare", "decode 16")),
        "seeded_ratio_to_greedy_16": ratio(demo, (ours, "seeded 16"), (ours, "decode 16")),
        "cold_dram_demo_seconds": middle(demo, "cold"),
        "cold_dram_half_b_seconds": middle(half, "cold"),
        "speedup_over_vllm_serve": ratio(half, ("vllm serve", "cold"), (ours, "cold")),
        "busy_ratio_to_quiet": ratio(demo, (ours, "busy 16"), (ours, "decode 16")),
        "warm_overhead_seconds": median(warm) if warm else None,
        "relay_cpu_seconds_per_1000_tokens": middle(demo, "relay"),
    }
    return {key: value for key, value in found.items() if value is not None}


def _print(model: Model) -> None:
    names = list(dict.fromkeys(name for name, _ in model.values))
    whats = list(dict.fromkeys(what for _, what in model.values))
    for unit, mine in (("tokens/s", ("decode", "seeded", "busy")), ("ms", ("first", "cold"))):
        rows = [
            [what, *(_cell(model.values.get((name, what)), unit) for name in names)]
            for what in whats
            if what.startswith(mine)
        ]
        print_table(f"{model.name}: {unit}", [unit, *names], rows)
    for name, why in model.refusals.items():
        print(f"{model.name}: without {name}: {why}")


def _cell(values: list[float] | None, unit: str) -> str:
    return spread(values, unit) if values else ""


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Times that everything is measured.")] = 3,
    models: Annotated[str, typer.Option(help="Which: demo, 0.5B.")] = "demo,0.5B",
    streams: Annotated[str, typer.Option(help="That decode at once.")] = "1,4,16,32",
    contenders: Annotated[str, typer.Option(help="Who takes part.")] = ",".join(ALL),
    wire: Annotated[bool, typer.Option(help="Through a cluster too, and vLLM's server.")] = True,
    json: Annotated[Path | None, typer.Option(help="Write the main figures here.")] = None,
) -> None:
    """Measures; ratios are within rounds. Ctrl-C ends it with what there is."""
    taking_part = tuple(name for name in contenders.split(",") if wire or name in KINDS)
    plan = Plan(rounds, tuple(map(int, streams.split(","))), taking_part)
    with tempfile.TemporaryDirectory(prefix="sllm-bench-") as name:
        scratch, chosen = Path(name), models.split(",")
        measured = {}
        if "demo" in chosen:
            measured["demo"] = Model("demo", EXAMPLES / "tiny-llama", plan)
        if "0.5B" in chosen:
            measured["0.5B"] = Model("0.5B", make_model("qwen2-0.5b", scratch / "half-b"), plan)
        with suppress(KeyboardInterrupt):
            for model in measured.values():
                run(model, scratch)
    for model in measured.values():
        _print(model)
    found = figures(measured, plan)
    print_table("Figures", ["figure", "value"], [[k, f"{v:.3f}"] for k, v in found.items()])
    write_figures(json, found)


if __name__ == "__main__":
    typer.run(main)
