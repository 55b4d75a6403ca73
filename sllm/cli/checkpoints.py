"""`sllm pack`, `verify` and `inspect`: checkpoints on this machine, without a cluster."""

import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from sllm.cli.common import Json, output, print_json
from sllm.cli.progress import BytesBar
from sllm.cli.tables import Listing
from sllm.config import format_bytes
from sllm.errors import CheckpointCorrupt

if TYPE_CHECKING:
    from sllm.checkpoint import Inspection

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
    as_json: Json = False,
) -> None:
    """Make a checkpoint for loading of a safetensors directory."""
    from sllm import checkpoint  # brings numpy along, which other commands can do without

    began = time.perf_counter()
    with BytesBar("packing") as bar:
        digest = checkpoint.pack(source, destination, dtype=dtype, progress=bar.show)
    seconds = time.perf_counter() - began
    size = checkpoint.inspect(destination).size_bytes
    if as_json:
        print_json(_done(destination, digest, size, seconds))
    else:
        typer.echo(f"{destination}: {digest}, {_speed(size, seconds)}")


def verify(path: Place, as_json: Json = False) -> None:
    """Read all of a checkpoint, and name every place that is not what was written."""
    from sllm import checkpoint
    from sllm.checkpoint.reading.verification import find_damage

    began = time.perf_counter()
    with BytesBar("verifying") as bar:
        damage = find_damage(path, bar.show)
    if damage:
        _show_damage(path, damage, as_json)
        raise CheckpointCorrupt(f"{path} is wrong in {len(damage)} place(s), listed above")
    found, seconds = checkpoint.inspect(path), time.perf_counter() - began
    checked = "digests are right" if found.digest else "headers are right, there are no digests"
    if as_json:
        print_json({**_done(path, found.digest, found.size_bytes, seconds), "damage": []})
    else:
        typer.echo(f"{path}: {checked}, {_speed(found.size_bytes, seconds)}")


def _done(path: Path, digest: str | None, size: int, seconds: float) -> dict[str, object]:
    """A checkpoint that was written or read, for programs."""
    return {"path": str(path), "digest": digest, "size_bytes": size, "seconds": seconds}


def _show_damage(path: Path, damage: tuple[CheckpointCorrupt, ...], as_json: bool) -> None:
    if as_json:
        places = [{**error.metadata, "message": error.message} for error in damage]
        print_json({"path": str(path), "damage": places})
    else:
        output().print(damage_table(damage))


def inspect(path: Place, as_json: Json = False) -> None:
    """Show what lies where in a checkpoint."""
    from sllm import checkpoint

    found = checkpoint.inspect(path)
    if as_json:
        print_json(found)
    else:
        output().print(summary_table(found))
        output().print(tensors_table(found))


def _speed(size: int, seconds: float) -> str:
    return f"{format_bytes(size)} in {seconds:.1f} s, {size / seconds / 1e9:.2f} GB/s"


def damage_table(damage: tuple[CheckpointCorrupt, ...]) -> Listing:
    """One row for each wrong place."""
    table = Listing("FILE", "OFFSET", "PROBLEM", folded=("PROBLEM",))
    for error in damage:
        file, offset = error.metadata["file"], error.metadata.get("offset", "-")
        problem = error.message.removeprefix(file).partition(": ")[2]
        table.add_row(Path(file).name, offset, problem)
    return table


def summary_table(found: "Inspection") -> Table:
    """What the checkpoint is as a whole."""
    table = Table(box=None, pad_edge=False, show_header=False)
    version = "" if found.version is None else f", version {found.version}"
    table.add_row("format", f"{found.format}{version}")
    table.add_row("digest", found.digest or "-")
    table.add_row("size", f"{format_bytes(found.size_bytes)} in {len(found.partitions)} file(s)")
    table.add_row("tensors", f"{len(found.tensors)}: {_dtypes(found)}")
    table.add_row("files", ", ".join(file.name for file in found.files) or "-")
    return table


def _dtypes(found: "Inspection") -> str:
    sizes: Counter[str] = Counter()
    for entry in found.tensors:
        sizes[entry.dtype] += entry.size
    return ", ".join(f"{dtype} {format_bytes(size)}" for dtype, size in sizes.most_common())


def tensors_table(found: "Inspection") -> Listing:
    """One row for each tensor, in the order in which they lie."""
    table = Listing("TENSOR", "DTYPE", "SHAPE", "SIZE", "FILE", "OFFSET")
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
