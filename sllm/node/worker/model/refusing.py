"""What the library says of a model it cannot use, as an error of ours."""

from collections.abc import Iterator
from contextlib import contextmanager

from sllm.errors import SllmError, UnsupportedModel

_MOST_LETTERS = 400
"""Of the library's sentence; some repeat whole files."""


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
    """What an error says, in one line; with its kind where its text alone says nothing."""
    text = " ".join(str(error).split())
    if not text or isinstance(error, (KeyError, IndexError, AttributeError, TypeError)):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= _MOST_LETTERS else f"{text[:_MOST_LETTERS]}…"
