"""`sllm pack`, `verify` and `inspect`: checkpoints on this machine, without a cluster."""

import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from sllm.checkpoint.reading.inspection import Inspection
from sllm.checkpoint.reading.inspection import inspect as read_inspection
from sllm.checkpoint.reading.verification import find_damage
from sllm.cli.common import Json, output, print_json
from sllm.cli.progress import BytesBar
from sllm.config import format_bytes
from sllm.errors import CheckpointCorrupt

Place = Annotated[
    Path,
    typer.Argument(
        help="A packed checkpoint, a directory of safetensors files, or one such file.",
        show_default=False,
    ),
]


def pack(
    source: Annotated[
        Path, typer.Argument(help="A directory of safetensors files.", show_default=False)
    ],
    destination: Annotated[
        Path, typer.Argument(help="A directory that is not there yet.", show_default=False)
    ],
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16: convert the weights to it.")
    ] = None,
) -> None:
    """Make a checkpoint for loading of a safetensors directory."""
    from sllm.checkpoint.importing.packing import pack as write_packed

    began = time.perf_counter()
    with BytesBar("packing") as bar:
        digest = write_packed(source, destination, dtype=dtype, progress=bar.show)
    seconds = time.perf_counter() - began
    size = read_inspection(destination).size_bytes
    typer.echo(f"{destination}: {digest}, {_speed(size, seconds)}")


def verify(path: Place) -> None:
    """Read all of a checkpoint, and name every place that is not what was written."""
    began = time.perf_counter()
    with BytesBar("verifying") as bar:
        damage = find_damage(path, bar.show)
    if damage:
        output().print(damage_table(damage))
        raise CheckpointCorrupt(f"{path} is wrong in {len(damage)} place(s), listed above")
    found, seconds = read_inspection(path), time.perf_counter() - began
    checked = "digests are right" if found.digest else "headers are right, there are no digests"
    typer.echo(f"{path}: {checked}, {_speed(found.size_bytes, seconds)}")


def inspect(path: Place, as_json: Json = False) -> None:
    """Show what lies where in a checkpoint."""
    found = read_inspection(path)
    if as_json:
        print_json(found)
    else:
        output().print(summary_table(found))
        output().print(tensors_table(found))


def _speed(size: int, seconds: float) -> str:
    return f"{format_bytes(size)} in {seconds:.1f} s, {size / seconds / 1e9:.2f} GB/s"


def damage_table(damage: tuple[CheckpointCorrupt, ...]) -> Table:
    """One row for each wrong place."""
    table = _table("FILE", "OFFSET", "PROBLEM")
    for error in damage:
        file, offset = error.metadata["file"], error.metadata.get("offset", "-")
        problem = error.message.removeprefix(file).partition(": ")[2]
        table.add_row(Path(file).name, offset, problem)
    return table


def summary_table(found: Inspection) -> Table:
    """What the checkpoint is as a whole."""
    table = Table(box=None, pad_edge=False, show_header=False)
    version = "" if found.version is None else f", version {found.version}"
    table.add_row("format", f"{found.format}{version}")
    table.add_row("digest", found.digest or "-")
    table.add_row("size", f"{format_bytes(found.size_bytes)} in {len(found.partitions)} file(s)")
    table.add_row("tensors", f"{len(found.tensors)}: {_dtypes(found)}")
    table.add_row("files", ", ".join(file.name for file in found.files) or "-")
    return table


def _dtypes(found: Inspection) -> str:
    sizes: Counter[str] = Counter()
    for entry in found.tensors:
        sizes[entry.dtype] += entry.size
    return ", ".join(f"{dtype} {format_bytes(size)}" for dtype, size in sizes.most_common())


def tensors_table(found: Inspection) -> Table:
    """One row for each tensor, in the order in which they lie."""
    table = _table("TENSOR", "DTYPE", "SHAPE", "SIZE", "FILE", "OFFSET")
    for entry in found.tensors:
        table.add_row(
            entry.name,
            entry.dtype,
            "x".join(map(str, entry.shape)) or "-",
            format_bytes(entry.size),
            found.partitions[entry.partition].file,
            str(entry.offset),
        )
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
