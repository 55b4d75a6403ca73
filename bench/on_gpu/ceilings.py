"""What the bus and the disk can do: large copies of pinned memory, and direct reads."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.disk import direct_read_seconds, drop_from_page_cache

COPY_BYTES = 4 << 30
COPIES = 10


def pinned_copy_bytes_per_second() -> float:
    """The median of several copies of one large pinned buffer to the device."""
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, pin_memory=True)
    source.random_()
    target = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda")
    target.copy_(source, non_blocking=True)
    torch.cuda.synchronize()
    speeds = [COPY_BYTES / _copy_seconds(target, source) for _ in range(COPIES)]
    del source, target
    torch.cuda.empty_cache()
    return statistics.median(speeds)


def _copy_seconds(target: torch.Tensor, source: torch.Tensor) -> float:
    event: Any = torch.cuda.Event
    began, ended = event(enable_timing=True), event(enable_timing=True)
    began.record()
    target.copy_(source, non_blocking=True)
    ended.record()
    ended.synchronize()
    return float(began.elapsed_time(ended)) / 1000.0


def direct_read_bytes_per_second(files: Sequence[Path]) -> float:
    """One pass over all files, which are not in the page cache then."""
    drop_from_page_cache(files)
    return sum(file.stat().st_size for file in files) / direct_read_seconds(files)
