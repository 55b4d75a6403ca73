"""What reads the weights of a source, wherever it lies."""

from pathlib import Path
from typing import Protocol


class WeightReader(Protocol):
    """Reads a source's files. Any number of threads may read at once."""

    def read_into(self, memory: memoryview, file: Path, offset: int) -> None:
        """Fills `memory` with a file's bytes from `offset` on.

        Raises:
            CheckpointCorrupt: the file ends before, or cannot be read; names where.
            SourceUnavailable: the file cannot be had now.
        """
