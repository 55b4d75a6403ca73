"""Where a safetensors file keeps each tensor, read from its header alone.

The safetensors library gives no byte offsets, so the header is read here. Source:
https://github.com/huggingface/safetensors#format. The file starts with the header's length as
eight little-endian bytes; the header is JSON; the tensors' bytes follow, without gaps.

The library's reader is the measure: what it refuses is refused. It takes three things that the
format does not allow, and that are refused here: keys that occur twice, of which the last counts
there and perhaps the first elsewhere; a tensor written as an array instead of an object; and a
dtype written as an object.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sllm.checkpoint.format import strict_json
from sllm.checkpoint.format.dtypes import tensor_bytes
from sllm.checkpoint.format.file_errors import cannot_open
from sllm.checkpoint.format.manifest import corrupt
from sllm.checkpoint.format.plain_files import open_plain
from sllm.checkpoint.format.room import Room

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


def read_header(path: Path, room: Room | None = None) -> tuple[TensorHeader, ...]:
    """The tensors of the file at `path`, in the order of their bytes.

    Raises:
        CheckpointCorrupt: the file is cut short, or its header is not one; names the file, and
            the offset where something is wrong.
        CheckpointUnreadable: it cannot be opened now.
        InvalidSource: it does not lie in the room of its source.
    """
    try:
        file = open_plain(path, room)
    except OSError as error:
        raise cannot_open(path, error) from error
    with file:
        file_size = os.fstat(file.fileno()).st_size
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
        parsed = strict_json.parse(header)
    except ValueError as error:
        raise corrupt(path, f"its header cannot be parsed: {error}", HEADER_LENGTH_BYTES) from error
    if not isinstance(parsed, dict):
        raise corrupt(path, "its header is not a JSON object", HEADER_LENGTH_BYTES)
    _check_metadata(path, parsed.pop("__metadata__", None))
    return parsed


def _check_metadata(path: Path, metadata: Any) -> None:
    if metadata is None:
        return
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        problem = "its __metadata__ does not lead from texts to texts"
        raise corrupt(path, problem, HEADER_LENGTH_BYTES)


def _tensor(path: Path, name: str, raw: Any, data_start: int) -> TensorHeader:
    try:
        dtype, shape = raw["dtype"], raw["shape"]
        begin, end = raw["data_offsets"]
        if not isinstance(shape, list) or not isinstance(dtype, str):
            raise ValueError("shape must be an array, and dtype a text")
        if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
            raise ValueError("shape and data_offsets must be numbers >= 0")
        size = tensor_bytes(dtype, shape)
        if end - begin != size:
            raise ValueError(
                f"{dtype} of shape {list(shape)} takes {size} bytes, not {end - begin}"
            )
    except (LookupError, TypeError, ValueError) as error:
        raise corrupt(path, f"header of tensor {name!r}: {error!r}", HEADER_LENGTH_BYTES) from error
    return TensorHeader(name, dtype, tuple(shape), path, data_start + begin, size)


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
