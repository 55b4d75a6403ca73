"""Lists in pages: sorted by a key, each page begins after the last key of the page before."""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from sllm import errors

DEFAULT_SIZE: Final = 100
MAX_SIZE: Final = 1000


@dataclass(frozen=True, slots=True)
class Page:
    """The keys of one page."""

    keys: tuple[str, ...]
    next_token: str
    """To ask for the page after it. Empty: this is the last."""


def page_of(keys: Iterable[str], size: int, token: str) -> Page:
    """The page of at most `size` keys (0: the default) after `token`.

    Raises:
        errors.InvalidArgument: No page has that size.
    """
    if not 0 <= size <= MAX_SIZE:
        raise errors.InvalidArgument(f"page_size must be 0-{MAX_SIZE}, not {size}")
    size = size or DEFAULT_SIZE
    after = heapq.nsmallest(size + 1, (key for key in keys if key > token))
    return Page(tuple(after[:size]), after[size - 1] if len(after) > size else "")
