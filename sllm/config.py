"""Settings that clients, servers and the command line have in common, and how they are written."""

import os
from pathlib import Path
from typing import Final

from sllm import errors

CONTROL_VARIABLE: Final = "SLLM_CONTROL"
"""The environment variable that names the control plane."""
DEFAULT_CONTROL: Final = "localhost:50051"
"""host:port of the control plane where nothing else is said."""

API_KEY_VARIABLE: Final = "SLLM_API_KEY"
"""The environment variable that holds the caller's key, or a token of an OIDC issuer."""
TLS_CA_VARIABLE: Final = "SLLM_TLS_CA"
"""The environment variable that names the authority of control planes' certificates."""

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")


def control_address() -> str:
    """host:port of the control plane: `SLLM_CONTROL`, or the default."""
    return os.environ.get(CONTROL_VARIABLE) or DEFAULT_CONTROL


def data_directory() -> Path:
    """Where servers keep their files if they are not told.

    Raises:
        errors.InvalidArgument: There is no home directory.
    """
    try:
        return Path.home() / ".sllm"
    except RuntimeError as error:
        raise errors.InvalidArgument(
            "there is no home directory to keep files in: name another with --dir"
        ) from error


def parse_bytes(text: str) -> int:
    """Bytes of a size such as "4GiB", "512MiB", "1.5GB" or "1048576".

    Raises:
        errors.InvalidArgument: It is no size, or not above zero.
    """
    from pydantic import ByteSize, TypeAdapter, ValidationError  # only servers need it: 0.1 s

    try:
        size = TypeAdapter(ByteSize).validate_python(text)
    except ValidationError:
        size = ByteSize(0)
    if size <= 0:
        raise errors.InvalidArgument(f"{text!r} is not a size: write one like 4GiB or 512MiB")
    return int(size)


def format_bytes(size: int) -> str:
    """A number of bytes for people, in binary units: "1.5 GiB"."""
    power = min(max(size.bit_length() - 1, 0) // 10, len(_UNITS) - 1)
    return f"{size / 1024**power:.{1 if power else 0}f} {_UNITS[power]}"
