"""Segments on SSD: each a directory with its pages, and what is known of them.

What is known is written after the pages, and takes the place of what was known before by one
rename. So a kill leaves what there was. Whether pages are what they were is seen by their digests,
when they are read.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog

from sllm.checkpoint.files.direct_io import DirectFile
from sllm.errors import CheckpointCorrupt, CheckpointUnreadable
from sllm.node.kept.segment import Page, Segment

PREFIX = ".kept-"
"""Of the names of segments."""
_PAGES_FILE = "pages"
_INDEX_FILE = "index.json"
_FORMAT = 1
_KEY_BYTES = 16

_log = structlog.get_logger()


class Unreadable(Exception):
    """A segment's files are not what they should be, or are not there."""


@dataclass(frozen=True, slots=True)
class Part:
    """Of a segment, the bytes that are to be written."""

    name: str
    begin: int
    end: int


def write(directory: Path, part: Part, memory: memoryview, index: str) -> None:
    """Writes a part of a segment, and what is known of all of it.

    Args:
        directory: of all segments.
        part: whole blocks.
        memory: of the segment's chunk.
        index: see `index_of`.

    Raises:
        OSError: the disk is full, refuses it, or fails.
    """
    place = directory / part.name
    place.mkdir(exist_ok=True, mode=0o700)
    with DirectFile(place / _PAGES_FILE, os.O_WRONLY | os.O_CREAT) as file:
        file.write_from(memory[part.begin : part.end], part.begin)
    known = place / f"{_INDEX_FILE}.new"
    known.write_text(index)
    known.rename(place / _INDEX_FILE)


def read(directory: Path, segment: Segment, memory: memoryview) -> None:
    """Reads what is stored of a segment into its chunk.

    Raises:
        Unreadable: it is not all there.
    """
    try:
        with DirectFile(directory / segment.name / _PAGES_FILE, os.O_RDONLY) as file:
            file.read_into(memory[: segment.stored_bytes], 0)
    except (OSError, CheckpointCorrupt, CheckpointUnreadable) as error:
        raise Unreadable(str(error)) from error


def found(directory: Path, chunk_bytes: int) -> tuple[list[Segment], list[Path]]:
    """The segments that are there, and directories of what are none."""
    segments: list[Segment] = []
    others: list[Path] = []
    for place in _places(directory):
        try:
            segments.append(_restored(place, chunk_bytes))
        except (OSError, ValueError, TypeError, KeyError, Unreadable) as error:
            _log.warning("node.kept_pages_dropped", path=str(place), problem=str(error))
            others.append(place)
    return segments, others


def _places(directory: Path) -> Iterator[Path]:
    try:
        yield from sorted(path for path in directory.iterdir() if path.name.startswith(PREFIX))
    except OSError as error:
        _log.warning("node.not_listed", directory=str(directory), problem=str(error))


def index_of(segment: Segment, end: int) -> str:
    """What is known of a segment whose slots before `end` are on SSD."""
    known = {
        "format": _FORMAT,
        "space": segment.space,
        "page_bytes": segment.page_bytes,
        "stored": end,
        "seconds_per_token": segment.seconds_per_token,
        "pages": [
            (key.hex(), page.slot, page.digest.hex())
            for key, page in segment.pages.items()
            if page.slot < end
        ],
    }
    return json.dumps(known)


def _restored(place: Path, chunk_bytes: int) -> Segment:
    index = json.loads((place / _INDEX_FILE).read_bytes())
    if index["format"] != _FORMAT:
        raise Unreadable(f"its format is {index['format']}, not {_FORMAT}")
    segment = Segment(place.name, str(index["space"]), int(index["page_bytes"]), 0)
    if not 0 < segment.page_bytes <= chunk_bytes:
        raise Unreadable(f"pages of {segment.page_bytes} bytes do not fit a chunk")
    segment.slots = chunk_bytes // segment.slot_bytes
    segment.used = segment.stored = int(index["stored"])
    taken = index["seconds_per_token"]
    segment.seconds_per_token = None if taken is None else float(taken)
    for key, slot, digest in index["pages"]:
        segment.pages[bytes.fromhex(key)] = Page(int(slot), bytes.fromhex(digest))
    _check(place, segment)
    return segment


def _check(place: Path, segment: Segment) -> None:
    there = (place / _PAGES_FILE).stat().st_size
    if not 0 < segment.stored <= segment.slots or there < segment.stored_bytes:
        raise Unreadable(f"{there} bytes are no {segment.stored} pages of {segment.slot_bytes}")
    for key, page in segment.pages.items():
        if len(key) != _KEY_BYTES or not 0 <= page.slot < segment.stored:
            raise Unreadable("it tells of pages that it does not have")
