"""A cluster on this machine, and one small model on it: cold, warm, and cold again from memory.

    python examples/demo.py [MODEL]

Starts a control plane and two nodes in a temporary directory, and leaves nothing behind.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import psutil
import typer
from rich.console import Console
from rich.markup import escape

import sllm
from sllm.cli.receipts import receipts_table
from sllm.config import format_bytes

TRAINED = Path(__file__).resolve().parent / "tiny-llama"
PROMPTS = ("The for statement", "A list is", "The function returns")
TOKENS = 48
KEEP_ALIVE = 1.0
PATIENCE = 300.0
"""Seconds that anything may take before the demo gives up."""

console = Console(highlight=False)


def demo(
    model: Annotated[Path, typer.Argument(help="Directory of a model.")] = TRAINED,
) -> None:
    """Show a cold start, a warm one, and one from memory."""
    began = time.monotonic()
    with TemporaryDirectory(prefix="sllm-demo-") as directory:
        say("Starting a control plane and two nodes, each a process of its own")
        with cluster(Path(directory)) as address, sllm.Client(address) as client:
            tour(client, model)
            say("Stopping everything")
    seconds = time.monotonic() - began
    say(f"Nothing is left: no process, no file. It took {seconds:.0f} s")
    console.print(NEXT, soft_wrap=True, markup=False)


NEXT = """
Now yourself, from this directory (or with .venv/bin in your PATH). In one terminal:

    .venv/bin/sllm up --nodes 2

and once it says what it is listening on, in another:

    .venv/bin/sllm deploy tiny examples/tiny-llama
    .venv/bin/sllm generate tiny "The for statement" --max-tokens 32 --receipt
    .venv/bin/sllm nodes
    curl http://localhost:8000/v1/completions -d '{"model": "tiny", "prompt": "A list is"}'

The console is at http://localhost:8000: it shows all of this as it happens.
"""


def tour(client: sllm.Client, model: Path) -> None:
    """All that there is to see."""
    say(f"Deploying {model.name} as [bold]tiny[/], to be stopped {KEEP_ALIVE:g} s after its use")
    with console.status("the nodes are warming up; one of them imports the checkpoint"):
        deployment = client.deploy("tiny", model, keep_alive=KEEP_ALIVE, timeout=PATIENCE)

    say(f"It is to run on [bold]{deployment.engine}[/], the first engine here that knows it")
    say("Nothing runs yet. The first request reads the weights from SSD and starts a worker")
    first = generate(client, PROMPTS[0])
    say("The same model, now that it runs")
    second = generate(client, PROMPTS[1])
    say("Nobody asks for a while: the worker is stopped, and its weights stay in memory")
    with console.status("idle"):
        wait_until_stopped(client)
    third = generate(client, PROMPTS[2])

    say("Where the time to the first token went")
    columns = {"first": first, "warm": second, "after scale to zero": third}
    console.print(receipts_table({title: result.receipt for title, result in columns.items()}))
    show_sharing(client, model)


def generate(client: sllm.Client, prompt: str) -> sllm.Result:
    """One request; its text appears as it comes."""
    console.print(f"[dim]{escape(prompt)}[/]", end="")
    with client.generate(
        "tiny", prompt, max_tokens=TOKENS, temperature=0.0, timeout=PATIENCE
    ) as stream:
        for event in stream:
            if isinstance(event, sllm.Tokens):
                sys.stdout.write(event.text)
                sys.stdout.flush()
        result = stream.result()
    milliseconds = result.receipt.time_to_first_token * 1000
    console.print(f"\n[cyan]first token after {milliseconds:.0f} ms[/]")
    return result


def wait_until_stopped(client: sllm.Client) -> None:
    """Returns once no instance is left."""
    deadline = time.monotonic() + PATIENCE
    while client.instances():
        if time.monotonic() > deadline:
            raise SystemExit("the instance was not stopped")
        time.sleep(0.1)


def show_sharing(client: sllm.Client, model: Path) -> None:
    """Two names, two workers, one copy of the weights: transformers uses them where they lie."""
    say("The same weights under two more names, on transformers, both running at once")
    for name in ("tiny-2", "tiny-3"):
        client.deploy(name, model, engine="transformers", keep_alive=PATIENCE, timeout=PATIENCE)
        client.complete(name, PROMPTS[0], max_tokens=1, timeout=PATIENCE)
        console.print(f"[bold]{name}[/] runs; weights in memory: {format_bytes(dram_used(client))}")
    pids = " and ".join(str(instance.worker_pid) for instance in client.instances())
    console.print(f"Workers {pids} map the same pages")


def dram_used(client: sllm.Client) -> int:
    """Bytes of weights in the memory of all nodes."""
    tiers = [tier for node in client.nodes() for tier in node.tiers]
    return sum(tier.used_bytes for tier in tiers if tier.tier is sllm.Tier.DRAM)


@contextmanager
def cluster(directory: Path) -> Iterator[str]:
    """`sllm up` with small nodes: its address. At the end nothing of it is left."""
    sizes = ("--dram=256MiB", "--ssd=1GiB", "--kv=256MiB")
    command = (
        sys.executable,
        "-m",
        "sllm.cli.main",
        "up",
        "--nodes=2",
        "--port=0",
        "--no-http",
        *sizes,
    )
    up = subprocess.Popen((*command, f"--dir={directory}"), stdout=subprocess.PIPE, text=True)
    try:
        yield address_of(up)
    finally:
        stop(up)


def stop(up: subprocess.Popen[str]) -> None:
    """Ends the cluster and checks that all its processes have ended."""
    started = psutil.Process(up.pid).children(recursive=True)
    up.terminate()
    up.communicate(timeout=PATIENCE)
    _, left = psutil.wait_procs(started, timeout=PATIENCE)
    if left:
        raise SystemExit(f"left behind: {left}")


def address_of(up: subprocess.Popen[str]) -> str:
    """host:port of the control plane, once all nodes are there."""
    assert up.stdout is not None
    line = up.stdout.readline()
    if not line.startswith("listening on "):
        raise SystemExit("the cluster did not start")
    return line.removeprefix("listening on ").strip()


def say(what: str) -> None:
    """What comes next."""
    console.print(f"\n[bold green]▸[/] {what}")


if __name__ == "__main__":
    typer.run(demo)
