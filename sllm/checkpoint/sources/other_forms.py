"""What a directory holds instead of a model in safetensors, and what to do about it."""

from collections.abc import Collection, Sequence
from pathlib import Path

from sllm.checkpoint.format.plain_files import open_plain
from sllm.checkpoint.format.room import Room
from sllm.checkpoint.sources.file_names import ADAPTER_CONFIG, ADAPTER_WEIGHTS, INDEX, WEIGHTS
from sllm.errors import InvalidSource

_POINTER = b"version https://git-lfs"
_LONGEST_POINTER = 1024
"""Bytes; they have some 130."""
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")


def refuse_other_forms(place: object, names: Collection[str]) -> None:
    """Names what files are that lie where weights in safetensors should.

    Args:
        place: directory or URL, to be named.
        names: of its files.

    Raises:
        InvalidSource: there are no safetensors of a model; says what there is, and what helps.
    """
    if ADAPTER_CONFIG in names and not {WEIGHTS, INDEX, ADAPTER_WEIGHTS} & set(names):
        raise InvalidSource(
            f"{place} is an adapter ({ADAPTER_CONFIG}) without {ADAPTER_WEIGHTS}: load it with "
            "peft and save it with save_pretrained, which writes safetensors"
        )
    if INDEX in names or any(name.endswith(".safetensors") for name in names):
        return
    if gguf := _first(names, (".gguf",)):
        raise InvalidSource(
            f"{place} has no *.safetensors files, but {gguf}: GGUF is not read; deploy the "
            "safetensors that it was made from"
        )
    if pickled := _first(names, _PICKLED):
        raise InvalidSource(
            f"{place} has no *.safetensors files, but {pickled}: pickled weights are not read, as "
            "they can run code; load them with transformers and save them with save_pretrained"
        )
    raise InvalidSource(f"{place} has no *.safetensors files")


def refuse_pointers(paths: Sequence[Path], room: Room) -> None:
    """Refuses files that stand for others which Git LFS has not fetched.

    Raises:
        InvalidSource: names one.
    """
    for path in paths:
        if path.suffix == ".safetensors" and path.stat().st_size <= _LONGEST_POINTER:
            with open_plain(path, room) as file:
                if file.read(len(_POINTER)) == _POINTER:
                    raise InvalidSource(
                        f"{path} is a pointer of Git LFS and not the weights: run `git lfs pull` "
                        f"in {path.parent}"
                    )


def _first(names: Collection[str], endings: tuple[str, ...]) -> str | None:
    return min((name for name in names if name.endswith(endings)), default=None)
