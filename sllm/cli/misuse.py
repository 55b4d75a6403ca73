"""What is wrong with an argument, in words that tell what to write instead.

Typer has pydantic read what is typed, and passes on what that says of a value of any program.
"""

from collections.abc import Mapping
from typing import Any, Final

_WORDS: Final[Mapping[str, str]] = {
    "bool_parsing": "{input!r} is neither true nor false",
    "float_parsing": "{input!r} is no number",
    "greater_than_equal": "{input} is too little: it has to be at least {ge:g}",
    "int_parsing": "{input!r} is no whole number",
    "int_parsing_size": "{input!r} is too large a number",
    "less_than_equal": "{input} is too much: it may be at most {le:g}",
    "value_error": "{error}",
}
"""By pydantic's name of what is wrong."""


def reworded(error: Any) -> Any:
    """A usage error, as typer has made it, that says the same in our words."""
    if found := _found(error.__cause__):
        error.message = _WORDS[found["type"]].format(**found.get("ctx", {}), input=found["input"])
    return error


def _found(cause: Any) -> Mapping[str, Any] | None:
    """The first thing that pydantic has found, if we have words for it.

    Asked for by what it has: typer before 0.29 does without pydantic, and so may whoever has that.
    """
    tell = getattr(cause, "errors", None)
    found = tell()[0] if tell else {}
    return found if found.get("type") in _WORDS else None
