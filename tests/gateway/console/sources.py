"""What the console is built of, as one digest: tells whether what is committed was built of it."""

import hashlib
from pathlib import Path
from typing import Final

from sllm.gateway.console.page import STATIC

SOURCES: Final = Path(__file__).resolve().parents[3] / "console"
STAMP: Final = STATIC / "sources.sha256"
_LEFT_OUT: Final = ("node_modules", "dist")


def digest() -> str:
    """Of all files under `console/`, and their names."""
    hashed = hashlib.sha256()
    for path in sorted(SOURCES.rglob("*")):
        name = path.relative_to(SOURCES)
        if path.is_file() and name.parts[0] not in _LEFT_OUT:
            hashed.update(f"{name.as_posix()}\0".encode())
            hashed.update(hashlib.sha256(path.read_bytes()).digest())
    return hashed.hexdigest()


if __name__ == "__main__":
    STAMP.write_text(f"{digest()}\n")
