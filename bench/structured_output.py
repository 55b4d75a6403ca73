"""What a form costs: 16 streams with a JSON schema beside 16 without, and what its first holds up.

    PYTHONPATH=examples python -m bench.structured_output --rounds 5 --json FILE

The model has the shape of Qwen2 0.5B and a vocabulary of 151,000 tokens, as many as that has; its
weights are random. The schema has the size of those of function-calling benchmarks. Rounds are
interleaved, and what counts is the ratio within one.
"""

import asyncio
import random
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from make_models import make_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import sllm
from bench.local_cluster import DEFAULT_ENGINE, GIB, local_cluster
from bench.report import print_table, spread, write_figures

SHAPE = "qwen2-0.5b"
VOCABULARY = 151_000
STREAMS = 16
TOKENS = 48
NAME = "formed"
PLACE = {
    "type": "object",
    "properties": {
        "street": {"type": "string", "maxLength": 80},
        "city": {"type": "string", "maxLength": 40},
        "country": {"enum": ["DE", "FR", "IT", "ES", "PL", "NL"]},
        "position": {
            "type": "object",
            "properties": {
                "latitude": {"type": "number", "minimum": -90, "maximum": 90},
                "longitude": {"type": "number", "minimum": -180, "maximum": 180},
            },
            "required": ["latitude", "longitude"],
            "additionalProperties": False,
        },
    },
    "required": ["street", "city"],
    "additionalProperties": False,
}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "notes": {"type": "string"},
        "name": {"enum": ["book_a_room", "find_a_flight", "say_what_the_weather_is"]},
        "arguments": {
            "type": "object",
            "properties": {
                "from": PLACE,
                "to": PLACE,
                "on": {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}$"},
                "guests": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": 8,
                    "items": {
                        "type": "object",
                        "properties": {
                            "name": {"type": "string", "minLength": 1, "maxLength": 60},
                            "age": {"type": "integer", "minimum": 0, "maximum": 130},
                            "wishes": {"type": "array", "items": {"type": "string"}},
                        },
                        "required": ["name", "age"],
                    },
                },
            },
            "required": ["from", "to", "on", "guests"],
        },
    },
    "required": ["notes", "name", "arguments"],
    "additionalProperties": False,
}


def save_tokenizer(directory: Path) -> None:
    """Puts one of the size of Qwen's beside a model: byte pairs that a seed has chosen."""
    chance = random.Random(0)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    known, pairs = {letter: number for number, letter in enumerate(letters)}, []
    words = list(known)
    while len(known) < VOCABULARY:
        pair = chance.choice(words), chance.choice(words)
        word = "".join(pair)
        if len(word) <= 9 and word not in known:
            known[word] = len(known)
            words.append(word)
            pairs.append(pair)
    tokenizer = Tokenizer(models.BPE(known, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    fast.save_pretrained(directory)


async def step_seconds(client: sllm.AsyncClient, form: Any, seed: int) -> float:
    """Seconds between two tokens of a stream, of 16 side by side."""
    streams = [
        client.generate(
            NAME,
            prompt_token_ids=[seed + 7 * number + at for at in range(32)],
            max_tokens=TOKENS,
            seed=number,
            ignore_eos=True,
            structured_output=form,
        )
        for number in range(STREAMS)
    ]
    times = await asyncio.gather(*map(_times, streams))
    return median((one[-1] - one[0]) / (len(one) - 1) for one in times)


async def _times(stream: sllm.AsyncStream) -> list[float]:
    """When the first token came, and the last."""
    times: list[float] = []
    async for event in stream:
        if isinstance(event, sllm.Tokens):
            times += [time.perf_counter()] * len(event.token_ids)
    return times


async def held_up(client: sllm.AsyncClient, form: Any) -> tuple[float, float]:
    """The longest pause of a stream before another with a form begins beside it, and after."""
    stream = client.generate(NAME, prompt_token_ids=[1, 2, 3], max_tokens=400, ignore_eos=True)
    reading = asyncio.create_task(_times(stream))
    await asyncio.sleep(3)
    came = time.perf_counter()
    await client.complete(NAME, "a", max_tokens=4, structured_output=form)
    times = await reading
    pauses = [(later, later - one) for one, later in pairwise(times)]
    before = max(pause for later, pause in pauses if later < came)
    return before, max(pause for later, pause in pauses if later >= came)


async def measure(
    address: str, source: Path, engine: str, rounds: int
) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """Of each round the seconds of a step, without and with a form; the same of longest pauses."""
    form = {"json_schema": SCHEMA}
    steps, pauses = [], []
    async with sllm.AsyncClient(address) as client:
        await client.deploy(
            NAME, f"file://{source}", engine=engine, kv_cache_tokens=8192, keep_alive=600.0
        )
        await client.complete(NAME, prompt_token_ids=[1, 2, 3], max_tokens=4)
        pauses.append(await held_up(client, form))
        pauses.append(await held_up(client, form))
        for number in range(rounds):
            plain = await step_seconds(client, None, seed=number)
            steps.append((plain, await step_seconds(client, form, seed=number)))
    return steps, pauses


def main(
    rounds: Annotated[int, typer.Option(help="Of both, in turn.")] = 5,
    engine: Annotated[str, typer.Option(help="vllm or transformers.")] = DEFAULT_ENGINE,
    json: Annotated[Path | None, typer.Option(help="Write the main figures here.")] = None,
) -> None:
    """Measures, and prints a table."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        source = make_model(SHAPE, scratch / "model")
        save_tokenizer(source)
        with local_cluster(scratch, dram_bytes=3 * GIB, kv_bytes=GIB, engines=engine) as cluster:
            cluster.wait_for_engines(1)
            steps, pauses = asyncio.run(measure(cluster.address, source, engine, rounds))
    ratios = [formed / plain for plain, formed in steps]
    (usual, first), (_, later) = pauses
    print_table(
        f"A JSON schema, {STREAMS} streams, {SHAPE} on {engine}, {rounds} rounds",
        ("what", ""),
        [
            ("ms for a step, without", spread([plain for plain, _ in steps])),
            ("ms for a step, with", spread([formed for _, formed in steps])),
            ("with / without", f"{median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})"),
            ("longest pause of another stream before, ms", f"{1000 * usual:.0f}"),
            ("while the instance's first form begins, ms", f"{1000 * first:.0f}"),
            ("while its second begins, ms", f"{1000 * later:.0f}"),
        ],
    )
    write_figures(
        json,
        {
            "step_ratio": median(ratios),
            "first_form_pause_seconds": first,
            "later_form_pause_seconds": later,
        },
    )


if __name__ == "__main__":
    typer.run(main)
