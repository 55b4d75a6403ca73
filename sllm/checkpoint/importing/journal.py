"""Which chunks of a half-written checkpoint are done, so that a new process can go on."""

import json
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

JOURNAL_FILE = "journal"

ChunkKey = tuple[int, int]
"""Partition and chunk, by index."""


class Journal:
    """A line for every chunk that was written. Any thread may add to it.

    Its lines are not flushed to the disk, nor are the chunks that they tell of: whoever goes on
    must check each chunk against its digest.
    """

    def __init__(self, directory: Path, plan: str) -> None:
        """Takes up the journal in `directory` if it is of the same plan, or begins a new one.

        Raises:
            OSError: the disk is full, or fails.
        """
        path = directory / JOURNAL_FILE
        self.done = _read(path, plan)
        """Digests of the chunks that an earlier process wrote."""
        self._lock = threading.Lock()
        # Written anew, so that a line which a kill has cut short is not continued.
        written = path.with_suffix(".new")
        self._file = written.open("w", encoding="utf-8")
        self._write({"plan": plan})
        for key, digest in self.done.items():
            self.add(key, digest)
        written.rename(path)

    def add(self, key: ChunkKey, digest: str) -> None:
        """Notes that a chunk was written."""
        self._write({"chunk": key, "digest": digest})

    def _write(self, line: dict[str, Any]) -> None:
        with self._lock:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()


def _read(path: Path, plan: str) -> dict[ChunkKey, str]:
    """Everything up to the first line that makes no sense: there a kill has cut it short."""
    done: dict[ChunkKey, str] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        if not lines or json.loads(lines[0]) != {"plan": plan}:
            return {}
        for line in lines[1:]:
            entry = json.loads(line)
            partition, index = entry["chunk"]
            done[partition, index] = entry["digest"]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError):
        return done
    return done
