"""What an adapter takes to be there: from memory, from the disk, and beside PEFT's `load_adapter`.

    PYTHONPATH=examples python -m bench.adapters --rounds 8 --json FILE

The base has the shape of OPT 1.3B, the adapters rank 32 on all its linear layers, in bfloat16; all
weights are random. What counts is what a request's receipt tells of its adapter's load. Meanwhile
another stream goes on, whose longest pause is compared with its usual ones.
"""

import asyncio
import tempfile
import time
import warnings
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from make_models import make_model
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

import sllm
from bench.local_cluster import GIB, local_cluster
from bench.report import print_table, spread, write_figures

SHAPE = "opt-1.3b"
RANK = 32
BASE = "base"
WARM_UP_TOKENS = 8
STREAM_TOKENS = 400
"""More than anybody waits for: it is cancelled."""
STEPS_ALONE = 24


def make_adapters(source: Path, directory: Path, count: int) -> list[Path]:
    """Writes adapters over a model, as PEFT does."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
    paths = []
    for number in range(count):
        torch.manual_seed(number)
        with torch.no_grad():
            for name, one in adapted.named_parameters():
                if "lora_" in name:
                    one.normal_(0.0, 0.02)
        paths.append(directory / f"adapter-{number}")
        adapted.save_pretrained(str(paths[-1]))
    return paths


def peft_seconds(source: Path, paths: list[Path]) -> list[float]:
    """What PEFT takes to load each beside the first; files are in the page cache."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    adapted = PeftModel.from_pretrained(model, str(paths[0]), autocast_adapter_dtype=False)
    seconds = []
    for number, path in enumerate(paths):
        name, began = f"other-{number}", time.perf_counter()
        adapted.load_adapter(
            str(path), adapter_name=name, low_cpu_mem_usage=True, autocast_adapter_dtype=False
        )
        seconds.append(time.perf_counter() - began)
        adapted.delete_adapter(name)
    return seconds


def load_seconds(receipt: sllm.Receipt) -> float:
    """What a request has waited for its adapter."""
    found = [one.duration for one in receipt.phases if one.kind == "ATTACH"]
    if not found:
        raise RuntimeError("the adapter was there already")
    return found[-1]


async def measure(
    address: str, source: Path, paths: list[Path], engine: str, rounds: int
) -> dict[str, Any]:
    """Seconds of loads from the disk and from memory, and pauses of another stream."""
    async with sllm.AsyncClient(address) as client:
        await client.deploy(BASE, source, engine=engine, max_adapters=len(paths), keep_alive=600.0)
        for path in paths:
            await client.deploy(path.name, path, base=BASE, keep_alive=0.0)
        await client.complete(BASE, prompt_token_ids=[1, 2, 3], max_tokens=WARM_UP_TOKENS)
        from_disk = [load_seconds(await _one(client, path.name)) for path in paths]
        from_memory = [
            load_seconds(await _one(client, path.name)) for _ in range(rounds) for path in paths
        ]
        pauses = await _pauses(client, paths)
    return {"disk": from_disk, "memory": from_memory, "pauses": pauses}


async def _one(client: sllm.AsyncClient, name: str) -> sllm.Receipt:
    """One token with an adapter, which leaves afterwards: its weights stay in memory."""
    receipt = (await client.complete(name, prompt_token_ids=[1, 2, 3], max_tokens=1)).receipt
    while any(one.adapters for one in await client.instances(BASE)):  # noqa: ASYNC110 - elsewhere
        await asyncio.sleep(0.01)
    return receipt


async def _pauses(client: sllm.AsyncClient, paths: list[Path]) -> tuple[float, float, float]:
    """Of a stream: the usual step, the longest pause alone, and that while adapters are loaded.

    Prompts of one token: else theirs would be computed in the stream's steps.
    """
    stream = client.generate(
        BASE, prompt_token_ids=[1, 2, 3], max_tokens=STREAM_TOKENS, ignore_eos=True
    )
    times: list[float] = []

    async def read() -> None:
        async for event in stream:
            times.extend([time.perf_counter()] if isinstance(event, sllm.Tokens) else [])

    reading = asyncio.create_task(read())
    while len(times) < STEPS_ALONE:  # noqa: ASYNC110 - at the stream's pace
        await asyncio.sleep(0.05)
    began = time.perf_counter()
    for path in paths:
        await client.complete(path.name, prompt_token_ids=[5], max_tokens=1)
    ended = time.perf_counter()
    await client.cancel(stream.request_id)
    await asyncio.gather(reading, return_exceptions=True)
    pauses = [(later, later - one) for one, later in pairwise(times)]
    alone = [pause for later, pause in pauses if later < began]
    beside = [pause for later, pause in pauses if began <= later <= ended]
    return median(alone), max(alone), max(beside)


def main(
    rounds: Annotated[int, typer.Option(help="Loads of each adapter from memory.")] = 5,
    adapters: Annotated[int, typer.Option(help="How many there are.")] = 4,
    engine: Annotated[str, typer.Option(help="vllm or transformers.")] = "transformers",
    json: Annotated[Path | None, typer.Option(help="Write the main figures here.")] = None,
) -> None:
    """Measures, and prints a table."""
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        source = make_model(SHAPE, scratch / "model", dtype="bfloat16")
        paths = make_adapters(source, scratch, adapters)
        size = (paths[0] / "adapter_model.safetensors").stat().st_size
        peft = peft_seconds(source, paths)
        with local_cluster(scratch, dram_bytes=5 * GIB, kv_bytes=GIB, engines=engine) as cluster:
            cluster.wait_for_engines(1)
            found = asyncio.run(measure(cluster.address, source, paths, engine, rounds))
    step, alone, beside = found["pauses"]
    print_table(
        f"Rank {RANK} over {SHAPE} on {engine}: {size / 1e6:.0f} MB, {adapters} adapters",
        ("what", "ms"),
        [
            ("load from memory", spread(found["memory"])),
            ("load from the disk", spread(found["disk"])),
            ("PEFT's load_adapter, files in the page cache", spread(peft)),
            ("another stream: a step", f"{1000 * step:.1f}"),
            ("its longest pause before", f"{1000 * alone:.1f}"),
            ("its longest pause while adapters are loaded", f"{1000 * beside:.1f}"),
        ],
    )
    write_figures(
        json,
        {
            "adapter_load_seconds": median(found["memory"]),
            "adapter_load_from_ssd_seconds": median(found["disk"]),
            "peft_load_adapter_seconds": median(peft),
            "adapter_stream_step_seconds": step,
            "adapter_stream_pause_seconds": beside,
        },
    )


if __name__ == "__main__":
    typer.run(main)
