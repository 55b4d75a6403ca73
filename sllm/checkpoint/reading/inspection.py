"""What lies where in a checkpoint, without reading its tensors: `sllm.checkpoint.inspect`."""

import os
from dataclasses import dataclass
from pathlib import Path

from sllm.checkpoint.format.form import FORM_FILE, FORMS_DIRECTORY, WeightForm, read_form
from sllm.checkpoint.format.manifest import FileEntry, PartitionEntry, TensorEntry, corrupt
from sllm.checkpoint.format.manifest_file import FORMAT, read_manifest
from sllm.checkpoint.reading.weights import find_weights


@dataclass(frozen=True, slots=True)
class ReadyForm:
    """What lies within a packed checkpoint, ready for an engine."""

    form: WeightForm
    size_bytes: int
    """Bytes of all its partitions."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a checkpoint says of itself."""

    path: str
    format: str
    """`sllm-checkpoint` or `safetensors`."""
    version: int | None
    """Major version of the format; None: safetensors, which has none."""
    digest: str | None
    """Names the content; None: safetensors, whose content nobody has digested."""
    size_bytes: int
    """Bytes of all partitions, padding and headers included."""
    tensors: tuple[TensorEntry, ...]
    """In the order in which they lie; each knows its partition, offset and size."""
    partitions: tuple[PartitionEntry, ...]
    """Files of tensor bytes."""
    files: tuple[FileEntry, ...]
    """The model's small files; those of a safetensors directory are not looked at."""
    form: WeightForm | None
    """What it was made ready for. None: it is as published."""
    ready: tuple[ReadyForm, ...]
    """What was made of it by `sllm pack --for`, by name."""


def inspect(path: str | os.PathLike[str]) -> Inspection:
    """Reads a checkpoint's manifest, or the headers of its files, and checks the files' sizes.

    Args:
        path: a packed checkpoint, a directory of safetensors files, or one such file.

    Raises:
        SourceNotFound: nothing is there.
        InvalidSource: it is not a checkpoint, or cannot be read.
        CheckpointCorrupt: a file is missing, cut short or contradicts itself; names the file.
    """
    weights = find_weights(path)
    manifest = weights.manifest
    return Inspection(
        path=str(Path(path)),
        format=FORMAT if weights.packed else "safetensors",
        version=manifest.version if weights.packed else None,
        digest=manifest.digest or None,
        size_bytes=manifest.size_bytes,
        tensors=manifest.tensors,
        partitions=manifest.partitions,
        files=manifest.files,
        form=read_form(weights.directory) if weights.packed else None,
        ready=_ready_forms(weights.directory) if weights.packed else (),
    )


def _ready_forms(directory: Path) -> tuple[ReadyForm, ...]:
    forms = (path for path in (directory / FORMS_DIRECTORY).glob("*") if path.name[0] != ".")
    return tuple(_ready_form(path) for path in sorted(forms) if path.is_dir())


def _ready_form(directory: Path) -> ReadyForm:
    manifest, form = read_manifest(directory), read_form(directory)
    if form is None:
        raise corrupt(directory / FORM_FILE, "missing")
    return ReadyForm(form, manifest.size_bytes)
