"""Weights made ready ahead of any deployment, within a packed checkpoint: `sllm pack --for`."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Final

from sllm import errors
from sllm.checkpoint.files.atomic_directory import atomic_directory
from sllm.checkpoint.format.form import FORMS_DIRECTORY, WeightForm, form_file, form_label
from sllm.checkpoint.format.manifest_file import read_manifest
from sllm.node.instances.forms import form_of
from sllm.node.instances.zygote_process import ENVIRONMENT
from sllm.node.worker.backends.names import ENGINES, installed

_TARGET: Final = re.compile(r"(?P<engine>[a-z]+)(:tp=(?P<ranks>[1-9][0-9]{0,3}))?")
_SHOWN: Final = 2000
"""Letters of what a process has said before it died."""


@dataclass(frozen=True, slots=True)
class Target:
    """What weights are made ready for."""

    engine: str
    ranks: int

    @property
    def label(self) -> str:
        """As it is parsed."""
        return form_label(self.engine, self.ranks)


def parse_target(text: str) -> Target:
    """What `vllm`, `vllm:tp=2` or `transformers` names.

    Raises:
        errors.InvalidArgument: It names nothing.
        errors.EngineUnavailable: The engine is not installed here.
    """
    found = _TARGET.fullmatch(text)
    if found is None or found["engine"] not in ENGINES:
        raise errors.InvalidArgument(
            f"weights are not made ready for {text!r}: name an engine ({', '.join(ENGINES)}) and, "
            "for N devices together, append :tp=N, as in vllm:tp=2"
        )
    target = Target(found["engine"], int(found["ranks"] or 1))
    if target.engine not in installed():
        raise errors.EngineUnavailable(
            f"{target.engine} is not installed here: weights are made ready where it is, in the "
            "version that is to read them"
        )
    return target


def make_ready(checkpoint: Path, target: Target) -> WeightForm:
    """Writes what an engine that is installed here makes of a packed checkpoint's weights.

    A process of its own does it: engines are taken apart for it.

    Args:
        checkpoint: directory of the packed checkpoint, which gets a directory within it.
        target: what reads the weights.

    Raises:
        errors.InvalidArgument: It is there already, or cannot be written.
        errors.UnsupportedModel: The engine does not run the model, or reads weights as they are.
        errors.CheckpointCorrupt: The checkpoint is not what was packed.
        errors.NoCapacity: The disk is full.
        errors.Internal: The process has died.
    """
    made_of = read_manifest(checkpoint).digest
    form = replace(form_of(target.engine, target.ranks), made_of=made_of)
    destination = checkpoint / FORMS_DIRECTORY / form.name
    if destination.exists():
        raise errors.InvalidArgument(
            f"{destination} is there already: remove it to have it made anew"
        )
    with atomic_directory(destination) as directory, _leaving_no_parts(directory):
        _run(checkpoint, directory, form)
    return form


@contextmanager
def _leaving_no_parts(directory: Path) -> Iterator[None]:
    """Several ranks write beside the directory, which is put together at the end."""
    try:
        yield
    finally:
        for part in directory.parent.glob(f"{directory.name}.*"):
            shutil.rmtree(part, ignore_errors=True)


def _run(checkpoint: Path, directory: Path, form: WeightForm) -> None:
    read, write = os.pipe()
    order = {
        "engine": form.engine,
        "ranks": form.ranks,
        "checkpoint": str(checkpoint.absolute()),
        "directory": str(directory.absolute()),
        "form": form_file(form).decode(),
        "answer_fd": write,
        "parent_pid": os.getpid(),
    }
    command = (sys.executable, "-m", "sllm.node.worker.packing", json.dumps(order))
    with tempfile.TemporaryFile() as said, os.fdopen(read, "rb") as answers:
        try:
            done = subprocess.run(
                command,
                pass_fds=[write],
                env={**os.environ, **ENVIRONMENT},
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                check=False,
            )
        finally:
            os.close(write)
        _check(answers.read(), done.returncode, said)


def _check(answer: bytes, status: int, said: IO[bytes]) -> None:
    if status or not answer:
        said.seek(0)
        last = said.read().decode(errors="replace")[-_SHOWN:]
        raise errors.Internal(f"the process that makes weights ready ended with {status}: {last}")
    if failure := json.loads(answer):
        raise errors.make_error(failure["code"], failure["reason"], failure["message"])
