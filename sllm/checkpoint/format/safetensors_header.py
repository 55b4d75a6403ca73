"""Where a safetensors file keeps each tensor, read from its header alone.

The safetensors library gives no byte offsets, so the header is read here. Source:
https://github.com/huggingface/safetensors#format. The file starts with the header's length as
eight little-endian bytes; the header is JSON; the tensors' bytes follow, without gaps.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sllm.checkpoint.format.dtypes import tensor_bytes
from sllm.checkpoint.format.manifest import corrupt

HEADER_LENGTH_BYTES = 8
"""Of the number that a file begins with."""
MAX_HEADER_BYTES = 100_000_000
"""The bound that the safetensors library sets."""


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """One tensor of a safetensors file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    """Bytes from the start of the file."""
    size: int
    """Bytes."""


def read_header(path: Path) -> tuple[TensorHeader, ...]:
    """The tensors of the file at `path`, in the order of their bytes.

    Raises:
        CheckpointCorrupt: the file is cut short, or its header is not one; names the file, and
            the offset where something is wrong.
    """
    file_size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(HEADER_LENGTH_BYTES)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < HEADER_LENGTH_BYTES or HEADER_LENGTH_BYTES + length > file_size:
            raise corrupt(path, "the file ends within its header", file_size)
        if length > MAX_HEADER_BYTES:
            raise corrupt(path, f"a header of {length} bytes is longer than any may be", 0)
        header = _parse(path, file.read(length))
    data_start = HEADER_LENGTH_BYTES + length
    tensors = [_tensor(path, name, raw, data_start) for name, raw in header.items()]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.size))
    _check_contiguous(path, tensors, data_start, file_size)
    return tuple(tensors)


def _parse(path: Path, header: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(header, object_pairs_hook=_without_repeats)
    except ValueError as error:
        raise corrupt(path, f"its header cannot be parsed: {error}", HEADER_LENGTH_BYTES) from error
    if not isinstance(parsed, dict):
        raise corrupt(path, "its header is not a JSON object", HEADER_LENGTH_BYTES)
    parsed.pop("__metadata__", None)
    return parsed


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _tensor(path: Path, name: str, raw: Any, data_start: int) -> TensorHeader:
    try:
        dtype, shape = raw["dtype"], tuple(raw["shape"])
        begin, end = raw["data_offsets"]
        if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
            raise ValueError("shape and data_offsets must be numbers >= 0")
        size = tensor_bytes(dtype, shape)
        if end - begin != size:
            raise ValueError(
                f"{dtype} of shape {list(shape)} takes {size} bytes, not {end - begin}"
            )
    except (KeyError, TypeError, ValueError) as error:
        raise corrupt(path, f"header of tensor {name!r}: {error!r}", HEADER_LENGTH_BYTES) from error
    return TensorHeader(name, dtype, shape, path, data_start + begin, size)


def _check_contiguous(
    path: Path, tensors: list[TensorHeader], data_start: int, file_size: int
) -> None:
    """The format allows neither overlaps nor gaps, so that each byte has one meaning."""
    end = data_start
    for tensor in tensors:
        if tensor.offset != end:
            problem = "overlaps the one before" if tensor.offset < end else "leaves a gap before it"
            raise corrupt(path, f"tensor {tensor.name!r} {problem}", tensor.offset)
        end += tensor.size
    if end != file_size:
        problem = f"its tensors end at {end}, the file at {file_size} bytes"
        raise corrupt(path, problem, min(end, file_size))
