"""Make models of published shapes with random weights, for benchmarks and tests.

    python examples/make_models.py --list
    python examples/make_models.py qwen2-0.5b /tmp/qwen2-0.5b --shards 4

Every model comes with a small English tokenizer and a chat template. Its text means nothing.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from random_weights import write_weights
from rich.console import Console
from rich.table import Table
from shapes import SHAPES
from text import special_ids, train_tokenizer
from transformers import AutoConfig, GenerationConfig

TOKENS = 1024


class Dtype(StrEnum):
    """The types that weights can have."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


def make_model(
    name: str,
    destination: Path,
    *,
    dtype: str | None = None,
    shards: int = 1,
    seed: int = 0,
) -> Path:
    """Write a model with random weights in Hugging Face format.

    Args:
        name: One of `SHAPES`.
        destination: The directory to write; it is created if absent.
        dtype: The type of the weights, one of `Dtype`; by default that of the published model.
        shards: The most files to spread the weights over, in even parts.
        seed: Decides the weights, whatever the number of files.

    Returns:
        The destination.
    """
    tokenizer = train_tokenizer(TOKENS)
    ids = special_ids(tokenizer)
    shape = SHAPES[name] | ({"dtype": dtype} if dtype else {})
    config = AutoConfig.for_model(**shape, **ids)
    tokenizer.model_max_length = config.max_position_embeddings
    destination.mkdir(parents=True, exist_ok=True)
    write_weights(config, destination, tokens=TOKENS, shards=shards, seed=seed)
    for part in (config, tokenizer, GenerationConfig(**ids)):
        part.save_pretrained(destination)
    return destination


def list_shapes(wanted: bool) -> None:
    """Print the names that can be made, if that is wanted, and stop."""
    if not wanted:
        return
    table = Table("name", "family", "published as")
    for name, shape in SHAPES.items():
        table.add_row(name, shape["model_type"], shape["dtype"])
    Console().print(table)
    raise typer.Exit


def main(
    name: Annotated[str, typer.Argument(help="Which shape; --list tells them.")],
    destination: Annotated[Path, typer.Argument(metavar="OUT_DIR")],
    dtype: Annotated[
        Dtype | None, typer.Option(help="Type of the weights; the published model's by default.")
    ] = None,
    shards: Annotated[int, typer.Option(min=1, help="Files to spread the weights over.")] = 1,
    seed: int = 0,
    _: Annotated[
        bool, typer.Option("--list", is_eager=True, callback=list_shapes, help="List the shapes.")
    ] = False,
) -> None:
    """Make a model with random weights in Hugging Face format."""
    if name not in SHAPES:
        raise typer.BadParameter(f"no shape is called {name!r}; --list tells them")
    print(make_model(name, destination, dtype=dtype, shards=shards, seed=seed))


if __name__ == "__main__":
    typer.run(main)
