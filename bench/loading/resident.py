"""Until every byte is in memory: lazily mapped loaders are not done when they return."""

from bisect import bisect_right
from pathlib import Path

import torch

from bench.loading.contender import Tensors

PAGE_BYTES = 4096


def make_resident(tensors: Tensors, in_page_cache: bool) -> None:
    """Touches every page of `tensors`; those that are views of a file are copied first.

    Args:
        tensors: replaced by their copies.
        in_page_cache: whether views of files may stay as they are.
    """
    mapped = [] if in_page_cache else _file_mappings()
    for name, tensor in tensors.items():
        if _is_in(tensor.data_ptr(), mapped):
            tensors[name] = tensor.detach().clone()
        else:
            tensor.detach().flatten().view(torch.uint8).numpy()[::PAGE_BYTES].max(initial=0)


def _file_mappings() -> list[tuple[int, int]]:
    """Address ranges of this process that are views of files, in order."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, _, _, _, inode, *_ = line.split()
        if inode != "0":
            start, end = addresses.split("-")
            found.append((int(start, 16), int(end, 16)))
    return found


def _is_in(address: int, ranges: list[tuple[int, int]]) -> bool:
    index = bisect_right(ranges, (address, 1 << 64)) - 1
    return index >= 0 and address < ranges[index][1]
