"""Bounds of the small files of a source, each of which is read into memory as a whole."""

from collections.abc import Iterable

from sllm.checkpoint.format.plain_files import MAX_SMALL_BYTES
from sllm.errors import InvalidSource

_MAX_TOGETHER = 2 * MAX_SMALL_BYTES


def check_small(place: object, size: int) -> None:
    """Refuses a small file that is none.

    Raises:
        InvalidSource: it is too large to go with weights.
    """
    if size > MAX_SMALL_BYTES:
        raise InvalidSource(
            f"{place} has {size} bytes; configuration and tokenizer files have {MAX_SMALL_BYTES} "
            "at most: leave it out of the model's directory"
        )


def check_small_together(place: object, sizes: Iterable[int]) -> None:
    """The same of all small files of a source that is to be fetched.

    Raises:
        InvalidSource: they are too large together.
    """
    if (size := sum(sizes)) > _MAX_TOGETHER:
        raise InvalidSource(
            f"the small files of {place} have {size} bytes together, and {_MAX_TOGETHER} at most "
            "go with weights: leave out what is no configuration, tokenizer or template"
        )
