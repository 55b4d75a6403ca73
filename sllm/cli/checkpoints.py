"""`sllm pack`, `verify` and `inspect`: checkpoints on this machine, without a cluster."""

import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from sllm.cli.common import Json, output, print_json
from sllm.cli.progress import BytesBar
from sllm.cli.tables import Listing, versions
from sllm.config import format_bytes
from sllm.errors import CheckpointCorrupt, InvalidArgument

if TYPE_CHECKING:
    from sllm.checkpoint import Inspection
    from sllm.checkpoint.reading.inspection import ReadyForm
    from sllm.node.instances.packing import Target

Place = Annotated[
    Path,
    typer.Argument(
        help="A packed checkpoint, a directory of safetensors files, or one such file.",
        show_default=False,
    ),
]


def pack(
    source: Annotated[
        Path,
        typer.Argument(
            help="A directory of safetensors files, or a packed checkpoint.", show_default=False
        ),
    ],
    destination: Annotated[
        Path | None,
        typer.Argument(
            help="A directory that is not there yet. With --for alone: none, and what is made goes "
            "into SOURCE, which is packed already.",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16: convert the weights to it.")
    ] = None,
    made_for: Annotated[
        list[str] | None,
        typer.Option(
            "--for",
            metavar="ENGINE[:tp=N]",
            help="Make the weights ready for an engine that is installed here as well: vllm, "
            "vllm:tp=2, transformers. May be given several times.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a checkpoint for loading of a safetensors directory."""
    from sllm import checkpoint  # brings numpy along, which other commands can do without
    from sllm.node.instances.packing import parse_target

    targets = [parse_target(text) for text in made_for or ()]
    if destination is None and (not targets or dtype):
        raise InvalidArgument("name a directory that the checkpoint is written to: DESTINATION")
    began = time.perf_counter()
    if destination:
        with BytesBar("packing") as bar:
            checkpoint.pack(source, destination, dtype=dtype, progress=bar.show)
    seconds, place = time.perf_counter() - began, destination or source
    packed = checkpoint.inspect(place)
    if not as_json and destination:
        typer.echo(f"{place}: {packed.digest}, {_speed(packed.size_bytes, seconds)}")
    made = [_make_ready(place, target, as_json) for target in targets]
    if as_json:
        done = _done(place, packed.digest, packed.size_bytes, seconds)
        print_json({**done, "ready": made})


def _make_ready(place: Path, target: "Target", as_json: bool) -> dict[str, object]:
    """Weights as an engine reads them, made within a packed checkpoint; told to programs."""
    from sllm import checkpoint
    from sllm.node.instances.packing import make_ready

    began = time.perf_counter()
    name = make_ready(place, target).name
    seconds = time.perf_counter() - began
    (made,) = [one for one in checkpoint.inspect(place).ready if one.form.name == name]
    if not as_json:
        typer.echo(f"{place}: ready for {target.label}, {_speed(made.size_bytes, seconds)}")
    return {**asdict(made), "seconds": seconds}


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
        if found.ready:
            output().print(forms_table(found.ready))
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
    if found.form:
        made = f"{found.form.label} ({versions(found.form.versions)}), {found.form.kernels}"
        table.add_row("ready for", f"{made}, made of {found.form.made_of}")
    return table


def forms_table(ready: "tuple[ReadyForm, ...]") -> Listing:
    """One row for each form in which weights lie ready within a checkpoint."""
    table = Listing("READY FOR", "VERSIONS", "KERNELS", "DTYPE", "SIZE", folded=("VERSIONS",))
    for one in ready:
        table.add_row(
            one.form.label,
            versions(one.form.versions),
            one.form.kernels,
            one.form.dtype,
            format_bytes(one.size_bytes),
        )
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
