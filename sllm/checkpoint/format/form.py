"""What weights were made ready for: told by a small file of the checkpoint that holds them.

Such a checkpoint lies within the packed one that it was made of, in `forms/NAME`, or by itself
among others that a node keeps.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from sllm.checkpoint.format import strict_json
from sllm.checkpoint.format.manifest import corrupt
from sllm.checkpoint.format.plain_files import read_plain
from sllm.checkpoint.format.room import Room

FORM_FILE: Final = "form.json"
FORMS_DIRECTORY: Final = "forms"
"""Within a packed checkpoint: what was made of it, each in a directory that is named as it is."""
_CONTENTS: Final = re.compile(r"ready_made(-[1-9]\d{0,4})?\.json")
_MAX_LETTERS: Final = 256
_MAX_RANKS: Final = 1 << 16
_MAX_VERSIONS: Final = 64
"""Nodes report what forms say of themselves, whoever has written them."""


@dataclass(frozen=True, slots=True)
class WeightForm:
    """How an engine, as it was installed where this was made, reads weights."""

    name: str
    """The same for all that read them so: what was made for one is never read by another."""
    engine: str
    ranks: int = 1
    """Processes that read them, each a part of its own; all parts are there."""
    versions: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Of the engine's libraries, by name."""
    kernels: str = ""
    """What multiplies, and on which processor."""
    dtype: str = ""
    """Name of the torch dtype in which the model is run."""
    made_of: str = ""
    """Digest of the checkpoint that this was made of."""

    @property
    def label(self) -> str:
        """What it is for, as `sllm pack --for` takes it."""
        return form_label(self.engine, self.ranks)


def form_label(engine: str, ranks: int) -> str:
    """An engine and on how many ranks it runs: `vllm`, or `vllm:tp=2`."""
    return engine if ranks == 1 else f"{engine}:tp={ranks}"


def contents_file(rank: int) -> str:
    """The name of the small file that says what weights of one rank are."""
    return f"ready_made-{rank}.json" if rank else "ready_made.json"


def is_of_form(name: str) -> bool:
    """Whether what was made ready has a small file of this name."""
    return name == FORM_FILE or _CONTENTS.fullmatch(name) is not None


def form_file(form: WeightForm) -> bytes:
    """The content of the small file."""
    return json.dumps(asdict(form), indent=1).encode()


def read_form(directory: Path, room: Room | None = None) -> WeightForm | None:
    """What a checkpoint was made ready for. None: it is as published.

    Args:
        directory: of its small files.
        room: where they may lie, of a source.

    Raises:
        CheckpointCorrupt: The file does not say it.
        OSError: It cannot be read.
    """
    path = directory / FORM_FILE
    try:
        content = read_plain(path, room)
    except FileNotFoundError:
        return None
    try:
        return parse_form(content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise corrupt(path, f"does not tell a form: {error!r}") from error


def expect_form(directory: Path, name: str, made_of: str, room: Room | None = None) -> WeightForm:
    """As `read_form`, of what must have been made ready for one thing, of one checkpoint.

    Raises:
        CheckpointCorrupt: It was made for something else, or of another checkpoint.
        OSError: It cannot be read.
    """
    form = read_form(directory, room)
    if form is None or (form.name, form.made_of) != (name, made_of):
        raise corrupt(directory, "was made of another checkpoint, or for something else")
    return form


def parse_form(text: bytes | str) -> WeightForm:
    """What `form_file` has written. Takes the keys that this version knows, and ignores others.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: It is something else.
    """
    content: Any = strict_json.parse(text.encode() if isinstance(text, str) else text)
    ranks, versions = content["ranks"], content["versions"]
    if type(ranks) is not int or not 1 <= ranks <= _MAX_RANKS:
        raise ValueError(f"ranks are {ranks!r}")
    if len(versions) > _MAX_VERSIONS:
        raise ValueError(f"there are {len(versions)} versions")
    return WeightForm(
        name=_text(content["name"]),
        engine=_text(content["engine"]),
        ranks=ranks,
        versions={_text(name): _text(one) for name, one in versions.items()},
        kernels=_text(content["kernels"]),
        dtype=_text(content["dtype"]),
        made_of=_text(content["made_of"]),
    )


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _MAX_LETTERS:
        raise TypeError(f"expected a short text, found {str(value)[:_MAX_LETTERS]!r}")
    return value
