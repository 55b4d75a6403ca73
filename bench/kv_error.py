"""What keeping pages with eight bits a number changes.

    PYTHONPATH=examples python -m bench.kv_error --json FILE

A prompt is computed, its pages are kept exactly and with eight bits, and tokens go on from either,
as an engine computes them: how far the logprobs of the first token are apart, and how many greedy
tokens are the same. The model has the shape of Qwen2.5-0.5B and random weights, unless a
directory is given.
"""

import random
import tempfile
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from make_models import make_model
from transformers import AutoModelForCausalLM

from bench.report import print_table, write_figures
from sllm.node.worker.engine.int8_pages import packed, unpacked

SHAPE = "qwen2-0.5b"
VOCABULARY = 100_000


def go_on(model: Any, cache: Any, token: int, count: int) -> tuple[torch.Tensor, list[int]]:
    """Logprobs of the next token, and greedy tokens, from a cache and the token behind it."""
    logits = model(torch.tensor([[token]]), past_key_values=cache).logits[0, -1].float()
    first, tokens = logits.log_softmax(-1), [int(logits.argmax())]
    while len(tokens) < count:
        logits = model(torch.tensor([[tokens[-1]]]), past_key_values=cache).logits[0, -1]
        tokens.append(int(logits.argmax()))
    return first, tokens


def squeeze(cache: Any) -> float:
    """Replaces keys and values by what comes back of them; gives their relative error."""
    off, size = 0.0, 0.0
    for layer in cache.layers:
        for name in ("keys", "values"):
            was = getattr(layer, name).contiguous()
            dtype = str(was.dtype).removeprefix("torch.")
            raw = memoryview(was.flatten().view(torch.uint8).numpy())
            back = torch.frombuffer(
                unpacked(memoryview(packed(raw, dtype)), dtype), dtype=was.dtype
            )
            setattr(layer, name, back.view(was.shape))
            off += float((back.view(was.shape).float() - was.float()).square().sum())
            size += float(was.float().square().sum())
    return float((off / size) ** 0.5)


@torch.inference_mode()
def measure(model: Any, prompt: list[int], count: int) -> tuple[float, float, int]:
    """Relative error of keys and values, largest difference of logprobs, and equal tokens."""
    exact = model(torch.tensor([prompt[:-1]])).past_key_values
    other = model(torch.tensor([prompt[:-1]])).past_key_values
    error = squeeze(other)
    first, tokens = go_on(model, exact, prompt[-1], count)
    near, theirs = go_on(model, other, prompt[-1], count)
    same = next((n for n, (a, b) in enumerate(zip(tokens, theirs, strict=True)) if a != b), count)
    return error, float((first - near).abs().max()), same


def main(
    model: Annotated[Path | None, typer.Option(help="Directory; None: random weights.")] = None,
    prompts: Annotated[int, typer.Option(help="How many.")] = 4,
    length: Annotated[int, typer.Option(help="Tokens of each.")] = 512,
    tokens: Annotated[int, typer.Option(help="That are generated.")] = 32,
    json: Annotated[Path | None, typer.Option(help="Write the main figures here.")] = None,
) -> None:
    """Measures, and prints a table."""
    chosen = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        source = model or make_model(SHAPE, Path(name) / "model")
        loaded = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).eval()
        found = [
            measure(loaded, [chosen.randrange(VOCABULARY) for _ in range(length)], tokens)
            for _ in range(prompts)
        ]
    errors, apart, same = zip(*found, strict=True)
    rows = [[f"{error:.5f}", f"{far:.4f}", f"{n} of {tokens}"] for error, far, n in found]
    print_table("keys and values with 8 bits", ["relative error", "logprobs", "same tokens"], rows)
    figures = {
        "int8_relative_error": median(errors),
        "int8_logprob_difference": max(apart),
        "int8_same_tokens": median(same),
    }
    write_figures(json, figures)


if __name__ == "__main__":
    typer.run(main)
