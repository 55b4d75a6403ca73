"""What the library says of a model it cannot use, as an error of ours."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from sllm.errors import SllmError, UnsupportedModel

CANNOT_RUN: Final = "the engine cannot run the model"
"""What the first rank says of a model, and the others."""
_MOST_LETTERS = 400
"""Of the library's sentence; some repeat whole files."""

_FEWEST_WORDS = 3
"""Of a text that is a sentence."""
_OF_CODE = (LookupError, AttributeError, TypeError, AssertionError)
"""Errors that speak of the code that raised them."""


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turns whatever the library raises within the block into a refusal of the model.

    Args:
        what: cannot be used, or does not work; the library's own sentence follows it.

    Raises:
        UnsupportedModel: The library raised. Our own errors pass as they are.
    """
    try:
        yield
    except SllmError:
        raise
    except Exception as error:  # whatever broken or unknown content leads to, in much foreign code
        raise UnsupportedModel(f"{what}: {sentence(error)}") from error


def sentence(error: BaseException) -> str:
    """What an error says, in one line; with its kind where its text alone says little."""
    text = " ".join(str(error).split())
    if len(text.split()) < _FEWEST_WORDS or isinstance(error, _OF_CODE):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= _MOST_LETTERS else f"{text[:_MOST_LETTERS]}…"
